"""The one thread in which an engine's model computes. Work that comes after its end is refused in words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from preceptor_server.errors import EngineUnavailableError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_RETRY_SECONDS = 1.0


class EngineThread:
    """Runs what it is given, one function after the other: two forwards at once would only fight for the same cores."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="hf-engine")

    async def run(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        """What `function` returns. Raises EngineUnavailableError after `close`."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def submit(
        self, function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> Future[_Result]:
        """Without waiting for it. Raises EngineUnavailableError after `close`."""
        try:
            return self._executor.submit(function, *args, **kwargs)
        except RuntimeError as error:  # an executor raises it after its end, and for nothing else
            raise engine_closed() from error

    def close(self) -> None:
        """Returns once all that was submitted is done."""
        self._executor.shutdown(wait=True)


def engine_closed() -> EngineUnavailableError:
    return EngineUnavailableError("the engine is closed: ask another", retry_after_seconds=_RETRY_SECONDS)
