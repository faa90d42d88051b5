from __future__ import annotations

import logging

import pytest
from preceptor_server.observability.rate_limited import RateLimited, RateLimitFilter, Throttle


class Clock:
    now = 10.0

    def __call__(self) -> float:
        return self.now


def test_the_same_event_is_written_once_a_second_with_the_number_left_out(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    limited = RateLimited(logging.getLogger("a"), throttle=Throttle(clock=clock))
    for number in range(1000):
        limited.warning("refused size=%d", number)
    clock.now += 1.0
    limited.warning("refused size=%d", 7)
    assert [record.getMessage() for record in caplog.records] == ["refused size=0", "refused size=7 suppressed=999"]


def test_other_events_have_their_own_second(caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimited(logging.getLogger("a"), throttle=Throttle(clock=Clock()))
    for reason in ("NO_KEY", "NO_KEY", "EXPIRED_KEY"):
        limited.warning("refused reason=%s", reason, event=reason)
    assert [record.getMessage() for record in caplog.records] == ["refused reason=NO_KEY", "refused reason=EXPIRED_KEY"]


def test_events_told_apart_are_bounded() -> None:
    throttle = Throttle(clock=Clock())
    assert [throttle.ask(number) for number in range(10_000)] == [0] * 10_000
    assert len(throttle._told) == 256


def test_a_level_that_is_off_takes_no_turn(caplog: pytest.LogCaptureFixture) -> None:
    throttle = Throttle(clock=Clock())
    limited = RateLimited(logging.getLogger("a"), throttle=throttle)
    with caplog.at_level(logging.INFO):
        limited.debug("x")
        limited.info("x")
    assert len(caplog.records) == 1


def test_the_line_names_where_it_was_written_from(caplog: pytest.LogCaptureFixture) -> None:
    RateLimited(logging.getLogger("a")).error("x")
    assert caplog.records[0].filename == "test_rate_limited.py"


def test_a_librarys_lines_are_limited_whatever_numbers_they_hold_and_ours_are_not() -> None:
    clock = Clock()
    limiting = RateLimitFilter(("asyncio",), throttle=Throttle(clock=clock))

    def passed(name: str, number: int) -> logging.LogRecord | None:
        text = f"socket.accept() out of system resource fd={number}"
        record = logging.LogRecord(name, logging.ERROR, "events.py", 12, text, None, None)
        return record if limiting.filter(record) else None

    assert [passed("asyncio", number) is not None for number in range(3)] == [True, False, False]
    assert passed("asyncio.streams", 1) is not None
    assert all(passed(name, 1) for name in ("preceptor_server", "preceptor_server", "asyncio2", "asyncio2"))
    clock.now += 1
    record = passed("asyncio", 9)
    assert record is not None
    assert record.getMessage() == "socket.accept() out of system resource fd=9 suppressed=2"
