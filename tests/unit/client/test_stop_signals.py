from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from preceptor_client.commands.stop_signals import (
    SAME_PRESS_SECONDS,
    SIGNALS,
    EndedBySignal,
    StopSignals,
    is_of_signal,
)
from preceptor_client.train.stop import StopRequest
from pydantic import BaseModel, field_serializer
from pydantic_core import PydanticSerializationError

WAIT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of a program at a terminal, whatever this process was started with."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    # The handler runs in this thread, at one of its next bytecodes.
    for _ in range(100):
        time.sleep(0)


def _wait_until_asked(stop: StopRequest) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not stop.is_asked:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_asks_and_the_second_ends_at_once(number: signal.Signals, status: int) -> None:
    stop = StopRequest()
    with StopSignals(stop) as signals, stop.heeded():
        _send(number)
        _wait_until_asked(stop)
        time.sleep(SAME_PRESS_SECONDS)
        with pytest.raises(EndedBySignal):
            _send(number)
    assert signals.exit_status == status


def test_signal_that_a_launcher_passes_on_is_the_one_that_the_terminal_sent() -> None:
    stop = StopRequest()
    with StopSignals(stop), stop.heeded():
        _send(signal.SIGINT)
        _send(signal.SIGINT)
        _wait_until_asked(stop)


def test_signal_that_no_run_heeds_ends_at_once_and_is_not_forgotten_where_that_is_swallowed() -> None:
    stop = StopRequest()
    with StopSignals(stop):
        with pytest.raises(EndedBySignal):
            _send(signal.SIGTERM)
        _wait_until_asked(stop)


class _Interrupted:
    """Whose end a signal interrupts: nothing can be raised out of it."""

    def __del__(self) -> None:
        _send(signal.SIGTERM)


class _Failing:
    def __del__(self) -> None:
        raise ValueError("its own fault")


def test_signal_in_code_that_cannot_raise_is_silent_and_kept_and_other_errors_there_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        told.append(unraisable.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", tell)
    stop = StopRequest()
    with StopSignals(stop):
        _Interrupted()
        _Failing()
        _wait_until_asked(stop)
    assert told == [ValueError]
    assert sys.unraisablehook is tell


class _Slow(BaseModel):
    """A signal meets it while it is written out."""

    path: str

    @field_serializer("path")
    def _send_and_write(self, path: str) -> str:
        _send(signal.SIGTERM)
        return path


def test_what_a_library_makes_of_the_signal_is_known_for_it() -> None:
    with StopSignals(StopRequest()), pytest.raises(PydanticSerializationError) as told:
        _Slow(path="runs").model_dump()
    assert is_of_signal(told.value)
    assert is_of_signal(EndedBySignal())
    assert not is_of_signal(KeyboardInterrupt())
    assert not is_of_signal(PydanticSerializationError("another fault"))


def test_error_that_is_its_own_cause_in_the_end_is_of_no_signal() -> None:
    """TensorBoard keeps the error of its thread, and raises it at each call: a full disk hung the run here."""
    kept = OSError("no space left")
    told = RuntimeError("not written")
    told.__cause__, kept.__context__ = kept, told
    assert not is_of_signal(kept)
    assert not is_of_signal(told)


def test_other_signal_as_the_second_ends_at_once_and_the_first_gives_the_status() -> None:
    stop = StopRequest()
    with StopSignals(stop) as signals, stop.heeded():
        _send(signal.SIGTERM)
        time.sleep(SAME_PRESS_SECONDS)
        with pytest.raises(EndedBySignal):
            _send(signal.SIGINT)
    assert signals.exit_status == 143


def test_former_handlers_come_back() -> None:
    with StopSignals(StopRequest()):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt):
        _send(signal.SIGINT)


def test_signal_that_the_process_was_started_to_ignore_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopRequest()
    with StopSignals(stop), stop.heeded():
        _send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert not stop.is_asked


def test_in_another_thread_nothing_is_installed() -> None:
    def enter() -> None:
        with StopSignals(StopRequest()):
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]
