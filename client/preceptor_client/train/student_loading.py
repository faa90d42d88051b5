"""Loads the student's model and tokenizer from a folder or the hub: whole, or refused in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from preceptor_client.train.config import StudentConfig
from preceptor_client.train.errors import InvalidStudentError

_MAX_SHOWN = 3
_AutoClass = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]


def load_parts(config: StudentConfig, *, folder: Path | None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Those that the settings name, or those in `folder` (a checkpoint) with the settings' dtype."""
    source = str(folder) if folder else _checked_source(config.model)
    gguf_file = None if folder else config.gguf_file
    if gguf_file and Path(source).is_dir() and not (Path(source) / gguf_file).is_file():
        raise InvalidStudentError(f"student.gguf_file: no file {gguf_file} in {source}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
        auto_class = AutoModelForCausalLM if gguf_file else _auto_class(source)
        # Any: with output_loading_info it is a pair, which transformers' types do not say.
        loaded: Any = auto_class.from_pretrained(
            source, gguf_file=gguf_file, dtype=getattr(torch, config.dtype), output_loading_info=True
        )
    except Exception as error:
        raise InvalidStudentError(f"student.model {source!r} cannot be loaded: {_first_line(error)}") from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    _check_whole(model, found, source=source)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidStudentError("the student needs a fast tokenizer (a tokenizer.json): it is identified by it")
    return (_as_unquantised(model) if gguf_file else model), tokenizer


def _auto_class(source: str) -> _AutoClass:
    """For a model of texts; or for one of texts and images, where the checkpoint is one: its text part is trained, and
    all of it is saved."""
    config = AutoConfig.from_pretrained(source)
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    reads_images = named is not None and (named in (config.architectures or ()) or not is_causal)
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def _check_whole(model: PreTrainedModel, found: Mapping[str, Any], *, source: str) -> None:
    """transformers draws at random what a checkpoint lacks."""
    if missing := sorted(found["missing_keys"]):
        shown = ", ".join(missing[:_MAX_SHOWN]) + (", ..." if len(missing) > _MAX_SHOWN else "")
        raise InvalidStudentError(
            f"student.model {source!r} lacks {len(missing)} of the weights of {type(model).__name__}: {shown}: it may "
            "be the checkpoint of another kind of model, or be incomplete"
        )


def _first_line(error: Exception) -> str:
    """transformers lists all that it knows behind it."""
    return next(iter(str(error).splitlines()), "") or repr(error)


def _checked_source(name: str) -> str:
    """A folder that exists, or a hub id. What looks like a path is never looked up on the hub."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists():
        raise InvalidStudentError(
            f"student.model {name!r} is a file: give its folder, and its name as student.gguf_file"
        )
    if name.startswith(("/", "./", "../", "~")) or name.endswith("/") or name.count("/") > 1:
        raise InvalidStudentError(f"student.model: no folder {name!r}")
    return name


def _as_unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not remember that they came from a GGUF file: only such can be saved."""
    config = model.config
    del config.quantization_config
    # transformers' wrappers hide the signature of `to`.
    fresh: PreTrainedModel = type(model)(config).to(model.dtype)  # type: ignore[arg-type]
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh
