from __future__ import annotations

import asyncio
import threading
import time

from preceptor_server.observability.event_loop import LoopWatch
from preceptor_server.observability.families import Distribution


async def test_a_value_is_read_in_the_loop_from_another_thread() -> None:
    watch = LoopWatch(asyncio.get_running_loop())
    read_in = await asyncio.to_thread(watch.ask, threading.get_ident, patience_seconds=10)
    assert read_in == threading.get_ident()


async def test_in_the_loop_itself_it_is_read_at_once() -> None:
    assert LoopWatch(asyncio.get_running_loop()).ask(lambda: 3, patience_seconds=0) == 3


async def test_an_error_reaches_whoever_asks() -> None:
    watch = LoopWatch(asyncio.get_running_loop())
    try:
        await asyncio.to_thread(watch.ask, lambda: 1 // 0, patience_seconds=10)
    except ZeroDivisionError:
        return
    raise AssertionError("the error was lost")


async def test_a_busy_loop_is_not_waited_for_and_runs_no_late_reading() -> None:
    watch = LoopWatch(asyncio.get_running_loop())
    read: list[int] = []
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(watch.ask(lambda: read.append(1), patience_seconds=0.01)))
    asking.start()
    asking.join()  # the loop is kept busy until the other has given up
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (answers, read) == ([None], [])


async def test_delay_is_how_late_the_loop_is_and_each_tick_is_noted() -> None:
    delays, now = Distribution((0.1, 1.0)), 100.0
    watch = LoopWatch(asyncio.get_running_loop(), delays=delays, clock=lambda: now)
    assert watch.delay_seconds == 0
    watch.start()
    now += 0.4
    assert watch.delay_seconds == 0, "the next tick is due after half a second"
    now += 3.1
    assert watch.delay_seconds == 3.0
    answered: list[object] = []
    asking = threading.Thread(target=lambda: answered.append(watch.ask(lambda: 1, patience_seconds=1000)))
    asking.start()
    while not answered and asking.is_alive():
        await asyncio.sleep(0.01)  # its tick comes meanwhile
    asking.join()
    deadline = time.monotonic() + 20
    while sum(delays.counts) == 0 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert delays.counts[2] == 1, "it came 3 s late"
    watch.stop()
    now += 1000
    assert watch.delay_seconds == 0


async def test_a_stuck_loop_is_not_even_asked() -> None:
    now = 100.0
    watch = LoopWatch(asyncio.get_running_loop(), clock=lambda: now)
    watch.start()
    now += 60
    read: list[int] = []

    def note() -> int:
        read.append(1)
        return 1

    assert await asyncio.to_thread(watch.ask, note, patience_seconds=0.25) is None
    await asyncio.sleep(0)
    assert read == []
    watch.stop()


def test_a_loop_that_has_ended_gives_nothing() -> None:
    loop = asyncio.new_event_loop()
    watch = LoopWatch(loop)
    loop.close()
    assert watch.ask(lambda: 1, patience_seconds=10) is None
