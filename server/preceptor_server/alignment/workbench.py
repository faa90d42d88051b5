"""Runs what is too long for the event loop in a few threads, fairly between callers, bounded in number and bytes.

Start-time fair queueing in bytes: each job starts, in virtual time, where its caller's job before it ended, or now.
What starts first goes first, so a caller's own jobs stay in order, and who sent much waits for those that sent little.
No caller has all threads, nor have large jobs. Knows neither prompts nor tokenizers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from preceptor_server.alignment.workbench_config import WorkbenchConfig
from preceptor_server.errors import DeadlinePassedError, EngineUnavailableError, QueueFullError

T = TypeVar("T")

LARGE_BYTES = 1 << 18
"""A job beyond it may take long: some 0.1 s of tokenizing."""
_LEAST_COST = 1 << 12
"""Of the smallest job, in bytes: what it takes to hand it to a thread."""
_BYTES_PER_SECOND = 1_000_000
"""What a thread tokenizes, for the estimate of when to come back."""
_MAX_RETRY_SECONDS = 30.0


class Turn:
    """Work asks it now and then whether anybody still waits. For any thread."""

    def __init__(self, *, timeout_seconds: float | None = None) -> None:
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._is_given_up = False

    @property
    def remaining_seconds(self) -> float | None:
        """Until the deadline; None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self._is_given_up or self.remaining_seconds == 0.0

    def give_up(self) -> None:
        self._is_given_up = True

    def check(self) -> None:
        """Raises DeadlinePassedError where nobody waits any more."""
        if self.is_over:
            raise _late()


@dataclass(slots=True, eq=False)
class _Job:
    caller_key: str
    num_bytes: int
    starts: float
    """In virtual time."""
    turn: Turn
    may_run: asyncio.Future[None]
    is_running: bool = False

    @property
    def ends(self) -> float:
        return self.starts + max(self.num_bytes, _LEAST_COST)

    @property
    def is_large(self) -> bool:
        return self.num_bytes > LARGE_BYTES


@dataclass(slots=True)
class _Caller:
    waiting: deque[_Job] = field(default_factory=deque)
    num_running: int = 0
    num_bytes: int = 0
    ends: float = 0.0
    """In virtual time, its last job."""

    @property
    def num_jobs(self) -> int:
        return len(self.waiting) + self.num_running


class Workbench:
    """Threads, and who waits for them. All but the jobs themselves runs in one event loop."""

    def __init__(self, config: WorkbenchConfig | None = None) -> None:
        self._config = config or WorkbenchConfig()
        self._threads = ThreadPoolExecutor(self._config.num_threads, thread_name_prefix="workbench")
        self._callers: dict[str, _Caller] = {}
        self._now = 0.0
        """Virtual time: the start of the job that began last."""
        self._num_running = 0
        self._num_large = 0
        self._is_closed = False

    @property
    def num_jobs(self) -> int:
        """Under way and waiting."""
        return sum(caller.num_jobs for caller in self._callers.values())

    @property
    def num_bytes(self) -> int:
        """Of those."""
        return sum(caller.num_bytes for caller in self._callers.values())

    async def run(
        self, work: Callable[[Turn], T], *, caller_key: str, num_bytes: int, timeout_seconds: float | None = None
    ) -> T:
        """The result of `work`, done in a thread when the caller's turn has come. `num_bytes` is what it holds and what
        it costs. Raises what it raises, QueueFullError where too much waits, and DeadlinePassedError. Cancelled while
        it waits it is never begun; later, its Turn tells it so, and it holds its thread until it asks."""
        job = self._enter(caller_key, num_bytes, Turn(timeout_seconds=timeout_seconds))
        try:
            async with asyncio.timeout(timeout_seconds):
                await job.may_run
                return await asyncio.shield(self._begin(job, work))
        except TimeoutError as error:
            if not job.turn.is_over:  # the work's own
                raise
            raise _late() from error
        finally:
            job.turn.give_up()
            if not job.is_running:
                self._leave(job)

    def close(self) -> None:
        """Gives up what waits and what is under way; does not wait for it."""
        self._is_closed = True
        for job in [job for caller in self._callers.values() for job in caller.waiting]:
            job.turn.give_up()
            job.may_run.set_exception(_closed())
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enter(self, caller_key: str, num_bytes: int, turn: Turn) -> _Job:
        if self._is_closed:
            raise _closed()
        caller = self._callers.get(caller_key, _Caller())
        self._check_room(caller, num_bytes)
        self._callers[caller_key] = caller
        may_run: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job = _Job(caller_key, num_bytes, max(self._now, caller.ends), turn, may_run)
        caller.ends = job.ends
        caller.num_bytes += num_bytes
        caller.waiting.append(job)
        self._begin_what_may()
        return job

    def _begin(self, job: _Job, work: Callable[[Turn], T]) -> asyncio.Future[T]:
        def guarded() -> T:
            job.turn.check()
            return work(job.turn)

        future = asyncio.get_running_loop().run_in_executor(self._threads, guarded)
        job.is_running = True
        future.add_done_callback(lambda done: self._end(job, done))
        return future

    def _end(self, job: _Job, done: asyncio.Future[T]) -> None:
        if not done.cancelled():
            done.exception()  # keeps asyncio from reporting what no caller is left to hear
        self._leave(job)

    def _leave(self, job: _Job) -> None:
        caller = self._callers[job.caller_key]
        caller.num_bytes -= job.num_bytes
        if job in caller.waiting:
            caller.waiting.remove(job)
            if caller.ends == job.ends:  # what was never done is not owed
                caller.ends = job.starts
        else:
            caller.num_running -= 1
            self._num_running -= 1
            self._num_large -= job.is_large
        self._begin_what_may()
        self._forget_who_owes_nothing()

    def _begin_what_may(self) -> None:
        while self._num_running < self._config.num_threads and not self._is_closed:
            job = min(self._startable(), key=lambda job: job.starts, default=None)
            if job is None:
                return
            caller = self._callers[job.caller_key]
            caller.waiting.popleft()
            caller.num_running += 1
            self._num_running += 1
            self._num_large += job.is_large
            self._now = max(self._now, job.starts)
            if not job.may_run.done():
                job.may_run.set_result(None)

    def _startable(self) -> Iterable[_Job]:
        most = max(1, self._config.num_threads - 1)
        for caller in self._callers.values():
            if caller.waiting and caller.num_running < most:
                job = caller.waiting[0]
                if not job.is_large or self._num_large < most:
                    yield job

    def _forget_who_owes_nothing(self) -> None:
        if not self.num_jobs:  # nobody was kept waiting, so nobody owes anything
            self._callers.clear()
        elif len(self._callers) > 2 * self._config.num_threads:
            idle = [key for key, caller in self._callers.items() if not caller.num_jobs and caller.ends <= self._now]
            for key in idle:
                del self._callers[key]

    def _check_room(self, caller: _Caller, num_bytes: int) -> None:
        config = self._config
        for whose, num_jobs, held, max_jobs, max_bytes in (
            (
                "of this caller ",
                caller.num_jobs,
                caller.num_bytes,
                config.max_jobs_per_caller,
                config.max_bytes_per_caller,
            ),
            ("", self.num_jobs, self.num_bytes, config.max_jobs, config.max_bytes),
        ):
            if num_jobs >= max_jobs or (num_jobs and held + num_bytes > max_bytes):
                seconds = min(_MAX_RETRY_SECONDS, 0.5 + held / (_BYTES_PER_SECOND * config.num_threads))
                raise QueueFullError(
                    f"{num_jobs} prompts {whose}with {held} bytes wait to be read already: come back later",
                    retry_after_seconds=seconds,
                )


def _closed() -> EngineUnavailableError:
    return EngineUnavailableError("the server is closing", retry_after_seconds=1.0)


def _late() -> DeadlinePassedError:
    return DeadlinePassedError("the deadline passed before the prompt was read")
