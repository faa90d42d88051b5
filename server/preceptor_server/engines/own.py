"""An engine of the user's own: finds, checks and makes the class that `engine.kind` names."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from preceptor.own_class import (
    InvalidClassError,
    InvalidOptionError,
    argument_names,
    checked_options,
    import_class,
    misfit,
)

from preceptor_server.engines.base import Engine, UpdatesWeights
from preceptor_server.engines.config import OwnEngineConfig
from preceptor_server.errors import ServerError, StartupError, said
from preceptor_server.selftest import TOLERANCE_NATS
from preceptor_server.types import EngineInfo

MAX_MODEL_LEN, TOKENIZER_SIZE = "max_model_len", "tokenizer_size"
"""Arguments that the server gives to a constructor that names them: the setting, and the number of the tokenizer's
tokens, None without one."""


class OwnEngineClass:
    """A class that does for an engine, and its options, which its constructor takes."""

    def __init__(self, config: OwnEngineConfig) -> None:
        """Imports the class. Raises StartupError, which names the setting, where it does not fit."""
        self._kind = config.kind
        try:
            self._class = import_class(config.kind)
        except InvalidClassError as error:
            raise StartupError(f"engine.kind={config.kind!r}: {error}") from error
        if problem := misfit(self._class, Engine):
            raise StartupError(f"engine.kind={config.kind!r} is not an engine: {problem}")
        if config.weights_folder is not None and (problem := misfit(self._class, UpdatesWeights)):
            raise StartupError(f"engine.weights_folder: {problem}: leave it out")
        self._takes = argument_names(self._class)
        if config.max_model_len is not None and MAX_MODEL_LEN not in self._takes:
            name = self._class.__name__
            raise StartupError(f"engine.max_model_len: the constructor of {name} takes none: leave it out")
        self._max_model_len = config.max_model_len
        try:
            self._options = checked_options(self._class, config.options, reserved=(MAX_MODEL_LEN, TOKENIZER_SIZE))
        except InvalidOptionError as error:
            raise StartupError(f"engine.options.{error}") from error

    def make(self, *, tokenizer_size: int | None) -> Engine:
        """The engine, not loaded. Raises StartupError where its constructor fails."""
        given = {MAX_MODEL_LEN: self._max_model_len, TOKENIZER_SIZE: tokenizer_size}
        arguments: dict[str, Any] = deepcopy(self._options)  # Any: as the constructor's annotations say
        try:
            engine: Engine = self._class(
                **arguments, **{name: value for name, value in given.items() if name in self._takes}
            )
        except ServerError:
            raise
        except (TypeError, ValueError) as error:
            raise StartupError(f"engine.options: {self._kind} refuses them: {error}") from error
        except Exception as error:  # a user's constructor may fail with anything
            raise StartupError(f"engine.kind={self._kind!r}: its constructor failed: {error!r}") from error
        return engine


def load_own_engine(engine: Engine, *, kind: str) -> None:
    """Loads it, and has it say what it is. Raises StartupError where either fails."""
    try:
        engine.load()
        info: object = engine.info()
    except ServerError:
        raise
    except Exception as error:  # a user's code may fail with anything
        raise StartupError(f"engine.kind={kind!r} cannot be loaded: {said(error)}") from error
    if not isinstance(info, EngineInfo):
        raise StartupError(f"engine.kind={kind!r}: info() must return preceptor_server.types.EngineInfo, not {info!r}")
    if info.dtype not in TOLERANCE_NATS:
        raise StartupError(f"engine.kind={kind!r}: info().dtype={info.dtype!r} must be {' or '.join(TOLERANCE_NATS)}")
