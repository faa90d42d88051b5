"""Long work runs in threads, fairly between callers, within bounds, and is dropped when nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from preceptor_server.alignment.workbench import LARGE_BYTES, Turn, Workbench
from preceptor_server.alignment.workbench_config import WorkbenchConfig
from preceptor_server.errors import DeadlinePassedError, EngineUnavailableError, QueueFullError


class Steps:
    """Work that notes when it begins, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._gates: dict[str, threading.Event] = {}

    def work(self, name: str, *, waits: bool = False) -> Callable[[Turn], str]:
        gate = self._gates[name] = threading.Event()
        if not waits:
            gate.set()

        def run(turn: Turn) -> str:
            self.begun.append(name)
            while not gate.wait(0.005):
                turn.check()
            return name

        return run

    def let_go(self, name: str) -> None:
        self._gates[name].set()

    def end_all(self) -> None:
        for gate in self._gates.values():
            gate.set()


@contextmanager
def bench(steps: Steps, **settings: int) -> Iterator[Workbench]:
    workbench = Workbench(WorkbenchConfig(**settings))
    try:
        yield workbench
    finally:
        workbench.close()
        steps.end_all()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def test_work_runs_in_a_thread_of_its_own_and_returns_or_raises() -> None:
    with bench(Steps()) as workbench:
        names = await workbench.run(lambda _: threading.current_thread().name, caller_key="a", num_bytes=1)
        assert names.startswith("workbench")
        with pytest.raises(ZeroDivisionError):
            await workbench.run(lambda _: 1 // 0, caller_key="a", num_bytes=1)
        assert (workbench.num_jobs, workbench.num_bytes) == (0, 0)


async def test_callers_take_turns_by_the_bytes_that_they_sent() -> None:
    steps = Steps()
    with bench(steps, num_threads=1) as workbench:
        plan = [("a", 0, 10_000), ("a", 1, 10_000), ("a", 2, 10_000), ("b", 0, 20_000), ("b", 1, 20_000), ("c", 0, 100)]
        blocker = asyncio.create_task(workbench.run(steps.work("x", waits=True), caller_key="x", num_bytes=1))
        await until(lambda: steps.begun == ["x"])
        tasks = []
        for caller, number, num_bytes in plan:
            work = steps.work(f"{caller}{number}")
            tasks.append(asyncio.create_task(workbench.run(work, caller_key=caller, num_bytes=num_bytes)))
            await asyncio.sleep(0)
        steps.let_go("x")
        await asyncio.gather(blocker, *tasks)
        # Virtual starts: a 0, 10k, 20k; b 0, 20k; c 0. Who came first goes first where they are equal.
        assert steps.begun == ["x", "a0", "b0", "c0", "a1", "a2", "b1"]


async def test_who_comes_back_at_once_is_not_forgiven_what_it_took() -> None:
    """A closed loop: one caller sends its next large job when it has the answer to the one before."""
    steps = Steps()
    with bench(steps, num_threads=1) as workbench:

        async def large() -> None:
            for name in ("large 0", "large 1"):
                await workbench.run(steps.work(name), caller_key="large", num_bytes=100_000)

        blocker = asyncio.create_task(workbench.run(steps.work("x", waits=True), caller_key="small", num_bytes=1))
        await until(lambda: steps.begun == ["x"])
        small = [workbench.run(steps.work(f"small {n}"), caller_key="small", num_bytes=5000) for n in range(10)]
        tasks = [asyncio.create_task(work) for work in (large(), *small)]
        await asyncio.sleep(0)
        steps.let_go("x")
        await asyncio.gather(blocker, *tasks)
        assert steps.begun == ["x", "large 0", *(f"small {n}" for n in range(10)), "large 1"]


async def test_one_caller_never_has_all_threads() -> None:
    steps = Steps()
    with bench(steps, num_threads=2) as workbench:
        many = [
            asyncio.create_task(workbench.run(steps.work(f"a{n}", waits=True), caller_key="a", num_bytes=1))
            for n in range(3)
        ]
        await until(lambda: steps.begun == ["a0"])
        assert await workbench.run(steps.work("b"), caller_key="b", num_bytes=1) == "b"
        assert steps.begun == ["a0", "b"]
        steps.end_all()
        await asyncio.gather(*many)


async def test_large_jobs_of_several_callers_leave_a_thread_to_small_ones() -> None:
    steps = Steps()
    with bench(steps, num_threads=2) as workbench:
        large = [
            asyncio.create_task(workbench.run(steps.work(name, waits=True), caller_key=name, num_bytes=LARGE_BYTES + 1))
            for name in ("a", "b")
        ]
        await until(lambda: steps.begun == ["a"])
        assert await workbench.run(steps.work("small"), caller_key="c", num_bytes=1) == "small"
        assert steps.begun == ["a", "small"]
        steps.end_all()
        assert await asyncio.gather(*large) == ["a", "b"]


async def test_a_cancelled_caller_s_waiting_job_is_never_begun() -> None:
    steps = Steps()
    with bench(steps, num_threads=1) as workbench:
        first = asyncio.create_task(workbench.run(steps.work("x", waits=True), caller_key="a", num_bytes=7))
        second = asyncio.create_task(workbench.run(steps.work("y"), caller_key="a", num_bytes=11))
        await until(lambda: steps.begun == ["x"])
        assert (workbench.num_jobs, workbench.num_bytes) == (2, 18)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (workbench.num_jobs, workbench.num_bytes) == (1, 7)
        steps.let_go("x")
        assert await first == "x"
        await workbench.run(steps.work("z"), caller_key="a", num_bytes=1)
        assert steps.begun == ["x", "z"]


async def test_work_of_a_cancelled_caller_is_told_and_frees_its_thread() -> None:
    steps = Steps()
    with bench(steps, num_threads=1) as workbench:
        task = asyncio.create_task(workbench.run(steps.work("x", waits=True), caller_key="a", num_bytes=7))
        await until(lambda: steps.begun == ["x"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await workbench.run(steps.work("y"), caller_key="b", num_bytes=1) == "y"
        assert workbench.num_jobs == 0


async def test_a_deadline_ends_waiting_and_running_work() -> None:
    steps = Steps()
    with bench(steps, num_threads=1) as workbench:
        running = asyncio.create_task(
            workbench.run(steps.work("x", waits=True), caller_key="a", num_bytes=1, timeout_seconds=0.2)
        )
        waiting = asyncio.create_task(workbench.run(steps.work("y"), caller_key="a", num_bytes=1, timeout_seconds=0.05))
        for task in (waiting, running):
            with pytest.raises(DeadlinePassedError, match="before the prompt was read"):
                await task
        await until(lambda: workbench.num_jobs == 0)
        assert steps.begun == ["x"]


async def test_what_waits_is_bounded_in_number_and_bytes_in_all_and_per_caller() -> None:
    steps = Steps()
    limits = {"max_jobs": 4, "max_bytes": 100, "max_jobs_per_caller": 3, "max_bytes_per_caller": 60}
    with bench(steps, num_threads=1, **limits) as workbench:

        def send(caller: str, num_bytes: int) -> asyncio.Task[str]:
            work = steps.work(f"{caller}{num_bytes}", waits=True)
            return asyncio.create_task(workbench.run(work, caller_key=caller, num_bytes=num_bytes))

        async def refused(caller: str, num_bytes: int) -> QueueFullError:
            with pytest.raises(QueueFullError) as caught:
                await send(caller, num_bytes)
            return caught.value

        tasks = [send("a", 50)]
        await until(lambda: steps.begun == ["a50"])
        error = await refused("a", 11)
        assert str(error).startswith("1 prompts of this caller with 50 bytes wait")
        assert error.retry_after_seconds > 0
        tasks += [send("a", 1), send("a", 2)]
        await asyncio.sleep(0)
        assert "3 prompts of this caller" in str(await refused("a", 4))
        assert str(await refused("b", 48)).startswith("3 prompts with 53 bytes")
        tasks.append(send("b", 3))
        await asyncio.sleep(0)
        assert str(await refused("c", 1)).startswith("4 prompts with 56 bytes")
        steps.end_all()
        assert await asyncio.gather(*tasks) == ["a50", "a1", "a2", "b3"]


async def test_a_job_larger_than_the_bound_runs_when_there_is_no_other() -> None:
    with bench(Steps(), max_bytes=10, max_bytes_per_caller=10) as workbench:
        assert await workbench.run(lambda _: 1, caller_key="a", num_bytes=1000) == 1


async def test_closing_ends_what_waits_and_refuses_what_comes() -> None:
    steps = Steps()
    with bench(steps, num_threads=1) as workbench:
        running = asyncio.create_task(workbench.run(steps.work("x", waits=True), caller_key="a", num_bytes=1))
        waiting = asyncio.create_task(workbench.run(steps.work("y"), caller_key="a", num_bytes=1))
        await until(lambda: steps.begun == ["x"])
        workbench.close()
        for late in (waiting, asyncio.create_task(workbench.run(steps.work("z"), caller_key="b", num_bytes=1))):
            with pytest.raises(EngineUnavailableError, match="closing"):
                await late
        steps.let_go("x")
        assert await running == "x"


async def test_callers_that_owe_nothing_are_forgotten() -> None:
    steps = Steps()
    with bench(steps) as workbench:
        long = asyncio.create_task(workbench.run(steps.work("x", waits=True), caller_key="long", num_bytes=1))
        for number in range(500):
            await asyncio.gather(
                *(workbench.run(lambda _: None, caller_key=str(number), num_bytes=1) for _ in range(2))
            )
        assert len(workbench._callers) < 20
        steps.let_go("x")
        await long
        assert not workbench._callers
