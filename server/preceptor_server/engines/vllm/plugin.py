"""vLLM's general plugin: wraps the models that vLLM knows, in the processes of a Preceptor server and nowhere else.

vLLM runs every installed plugin in each of its processes, also in those of an unrelated `vllm serve` of the same
environment: without these variables in the environment nothing is touched.
"""

from __future__ import annotations

import os
import signal
import threading
import time

SWITCH = "PRECEPTOR_VLLM_SCORING"
"""Set to 1 by the server before it starts vLLM, whose processes inherit it."""

RAY_VARIABLES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
"""Where vLLM is told, names with commas between, what its workers on other nodes inherit too."""

SERVER_PID = "PRECEPTOR_VLLM_SERVER_PID"
"""Whose child vLLM's engine core is. Were the server killed, the core would go on without it, and keep its memory."""

_POLL_SECONDS = 1.0
_SECONDS_TO_END = 20.0

_WRAPPED = "preceptor_server.engines.vllm.wrapped"


def register() -> None:
    """Entry point of the group `vllm.general_plugins`. May run several times in a process."""
    if os.environ.get(SERVER_PID) == str(os.getppid()):
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="preceptor-parent").start()
    if os.environ.get(SWITCH) != "1":
        return
    import vllm
    from vllm import ModelRegistry

    from preceptor_server.engines.vllm import wrapped

    for architecture, registered in list(ModelRegistry.models.items()):
        module_name, class_name = getattr(registered, "module_name", None), getattr(registered, "class_name", None)
        if module_name is None or class_name is None or module_name == _WRAPPED:
            continue  # a class that is imported already, of another plugin, or wrapped before
        name = wrapped.name_of(module_name, class_name, version=vllm.__version__)
        ModelRegistry.register_model(architecture, f"{_WRAPPED}:{name}")


def _end_with(server_pid: int) -> None:
    """Ends this process, its own children first, once the server is gone."""
    while os.getppid() == server_pid:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_END)
    os._exit(1)
