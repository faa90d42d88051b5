"""Runs environments: each in a daemon thread and an event loop of its own, so that a bad one costs its episode alone.

An environment that blocks past its deadline is left behind with its thread: Python cannot end a thread from outside. A
thread that computes without end slows the others down.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.environment.environment import (
    CheckedTurn,
    Environment,
    MakeEnvironment,
    checked_messages,
    checked_tools,
    checked_turn,
)
from preceptor_client.train.errors import InvalidEpisodeError
from preceptor_client.train.stop import StopRequest
from preceptor_client.types import ChatMessage

_log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What an episode begins with."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[str, ...]


class Pending(Generic[ResultT]):
    """A call that an environment is at."""

    def __init__(
        self, future: Future[ResultT], *, what: str, where: str, timeout_seconds: float, stop: StopRequest
    ) -> None:
        self._future = future
        self._what = what
        self._where = where
        self._timeout_seconds = timeout_seconds
        self._stop = stop
        self._deadline = time.monotonic() + timeout_seconds
        self.is_late = False
        """Whether its result was waited for in vain."""

    def result(self) -> ResultT:
        """Waits until the deadline. Raises InvalidEpisodeError, which names the episode and what its environment
        did; StopRequestedError when the run is asked to stop."""
        try:
            return self._stop.result_of(self._future, timeout_seconds=max(0.0, self._deadline - time.monotonic()))
        except InvalidEpisodeError as error:
            raise InvalidEpisodeError(f"its environment's {error.why}", where=self._where) from error
        except TimeoutError as error:
            self._future.cancel()
            self.is_late = True
            raise InvalidEpisodeError(
                f"its environment's {self._what} took longer than rollout.environment_timeout_seconds="
                f"{self._timeout_seconds:g}: raise it, or mend the environment",
                where=self._where,
            ) from error
        except CancelledError as error:
            raise InvalidEpisodeError(f"its environment's {self._what} was cancelled", where=self._where) from error


class LiveEnvironment:
    """One environment in its thread. Calls return at once, and `Pending.result` waits; one call at a time."""

    def __init__(
        self, make: MakeEnvironment, *, name: str, timeout_seconds: float, stop: StopRequest | None = None
    ) -> None:
        """`name` is the episode's, for messages; `stop` ends waiting."""
        self._make = make
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._stop = stop or StopRequest()
        self._environment: Environment | None = None
        self._last: Pending[Any] | None = None  # Any: what the call gives
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name=f"environment of {name}", daemon=True).start()

    def reset(self, example: Example) -> Pending[Opening]:
        """Makes the environment and begins its episode."""

        async def opening() -> Opening:
            environment = self._environment = await _guarded("constructor", self._make)
            messages = await _guarded(
                "reset()", lambda: environment.reset(example), check=lambda given: checked_messages(given, of="reset()")
            )
            if not messages:
                raise InvalidEpisodeError("reset() gave no messages: give the student something to answer")
            tools = await _guarded("tools", lambda: getattr(environment, "tools", None), check=checked_tools)
            return Opening(messages=messages, tools=tools)

        return self._submit(opening, what="reset()")

    def step(self, text: str) -> Pending[CheckedTurn]:
        """Tells the environment what the student wrote."""

        async def turn() -> CheckedTurn:
            assert self._environment is not None, "an environment is reset before its first step"
            environment = self._environment
            answer: CheckedTurn = await _guarded(
                "step()", lambda: environment.step(text), check=lambda given: checked_turn(given, of="step()")
            )
            return answer

        return self._submit(turn, what="step()")

    def close(self) -> Pending[None]:
        """Lets the environment free what it holds, and ends its thread."""

        async def closing() -> None:
            close = getattr(self._environment, "close", None)
            try:
                if close is not None:
                    await asyncio.wait_for(_guarded("close()", close), self._timeout_seconds)
            finally:
                self._loop.call_soon(self._loop.stop)

        return self._submit(closing, what="close()")

    @property
    def is_late(self) -> bool:
        """Whether its last call passed its deadline: it may be at it still."""
        return self._last is not None and self._last.is_late

    def _submit(self, call: Callable[[], Any], *, what: str) -> Pending[Any]:  # Any: what the call gives
        future = asyncio.run_coroutine_threadsafe(call(), self._loop)
        self._last = Pending(
            future, what=what, where=self._name, timeout_seconds=self._timeout_seconds, stop=self._stop
        )
        return self._last

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            _end_tasks(self._loop)
        finally:
            self._loop.close()


def close_all(environments: Iterable[LiveEnvironment]) -> None:
    """Closes them side by side, and waits; not for those that are at a call still. Their episodes are what they are, so
    what goes wrong is logged."""
    closing = [(live.is_late, live.close()) for live in environments]
    for is_late, pending in closing:
        if is_late:
            continue
        try:
            pending.result()
        except InvalidEpisodeError as error:
            _log.warning("an environment did not close: error=%s", error)


async def _guarded(  # Any: the environment is a foreign program
    what: str, call: Callable[[], Any], *, check: Callable[[Any], Any] | None = None
) -> Any:
    """What the environment gives, whether or not it has to be awaited, as `check` returns it. Whatever is raised, by
    lazy messages too, is an InvalidEpisodeError."""
    try:
        given = call()
        given = await given if inspect.isawaitable(given) else given
        return check(given) if check else given
    except (asyncio.CancelledError, InvalidEpisodeError):
        raise
    except BaseException as error:  # a foreign program; a SystemExit would end the loop rather than the episode
        raise InvalidEpisodeError(f"{what} failed: {message_of(error)}") from error


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancels what the environment left running, and waits for none of it longer than its next step."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
    loop.run_until_complete(loop.shutdown_asyncgens())
