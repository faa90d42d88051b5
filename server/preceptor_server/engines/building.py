"""Makes the engine, and the tokenizer beside it, that the settings name. Imports an engine's libraries when asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from preceptor.model_source import InvalidSourceError, check_source

from preceptor_server.engines.base import Engine
from preceptor_server.engines.config import EngineConfig, HfConfig, OwnEngineConfig, VllmConfig
from preceptor_server.engines.own import OwnEngineClass, load_own_engine
from preceptor_server.errors import StartupError

if TYPE_CHECKING:
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers


def check_engine_class(config: EngineConfig) -> None:
    """Before anything is loaded: whether there is the class that `config.kind` names. Raises StartupError."""
    if isinstance(config, OwnEngineConfig):
        OwnEngineClass(config)


def build_engine(config: EngineConfig, tokenizer: TeacherTokenizer | None) -> Engine:
    """The engine that `config.kind` names, not loaded. Imports its libraries only now. Raises StartupError."""
    if isinstance(config, OwnEngineConfig):
        return OwnEngineClass(config).make(tokenizer_size=tokenizer.vocabulary_size if tokenizer else None)
    if isinstance(config, VllmConfig):
        from preceptor_server.engines.vllm.engine import VllmEngine

        return VllmEngine(config)
    from preceptor_server.engines.hf.engine import HfEngine

    return HfEngine(config)


def load_engine(engine: Engine, config: EngineConfig) -> None:
    """Loads what `build_engine` made. Raises StartupError."""
    if isinstance(config, OwnEngineConfig):
        load_own_engine(engine, kind=config.kind)
    else:
        engine.load()


def load_teacher_tokenizer(config: EngineConfig) -> TeacherTokenizer | None:
    """None where an engine of the user's own has none. A model's folder that lacks something is told here, before it is
    loaded."""
    from preceptor_server.alignment.teacher_tokenizer import load_tokenizer

    if not isinstance(config, OwnEngineConfig):
        _check_model(config)
    if config.tokenizer:
        return load_tokenizer(
            config.tokenizer, field="engine.tokenizer", gguf_file=None, trust_remote_code=config.trust_remote_code
        )
    if isinstance(config, OwnEngineConfig):
        return None
    gguf_file = config.gguf_file if isinstance(config, HfConfig) else None
    return load_tokenizer(
        config.model, field="engine.model", gguf_file=gguf_file, trust_remote_code=config.trust_remote_code
    )


def _check_model(config: HfConfig | VllmConfig) -> None:
    """Before anything is loaded. vLLM has formats of its own, so that only its folder is looked for."""
    is_hf = isinstance(config, HfConfig)
    if not is_hf and Path(config.model).is_file():
        return
    try:
        check_source(
            config.model,
            field="engine.model",
            gguf_file=config.gguf_file if isinstance(config, HfConfig) else None,
            gguf_field="engine.gguf_file" if is_hf else "",
            needs=("config", "weights") if is_hf else (),
        )
    except InvalidSourceError as error:
        raise StartupError(str(error)) from error
    except OSError as error:
        raise StartupError(f"engine.model: {config.model} cannot be read: {error}") from error
