from __future__ import annotations

import logging

import pytest
from preceptor_server.observability.observer import Asker, BatchDone, Observers, Outcome, Refusal

from tests.unit.server.observability.events import batch_done, caller, outcome

REFUSAL = Refusal(tenant="", transport="grpc", method="Score", reason="NO_KEY")


class Listening:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def began(self, caller: Asker) -> None:
        self.heard.append(caller)

    def ended(self, outcome: Outcome) -> None:
        self.heard.append(outcome)

    def refused(self, refusal: Refusal) -> None:
        self.heard.append(refusal)

    def batch_done(self, done: BatchDone) -> None:
        self.heard.append(done)


class Raising(Listening):
    def began(self, caller: Asker) -> None:
        raise RuntimeError("began")

    def ended(self, outcome: Outcome) -> None:
        raise RuntimeError("ended")

    def refused(self, refusal: Refusal) -> None:
        raise RuntimeError("refused")

    def batch_done(self, done: BatchDone) -> None:
        raise RuntimeError("batch_done")


def test_all_are_told_of_all() -> None:
    first, second = Listening(), Listening()
    observers: Observers[Outcome] = Observers((first, second))
    events = caller(), outcome(), REFUSAL
    observers.began(events[0])
    observers.ended(events[1])
    observers.refused(events[2])
    assert first.heard == second.heard == [*events]


def test_one_that_raises_silences_no_other_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    listening = Listening()
    observers: Observers[Outcome] = Observers((Raising(), listening))
    observers.began(caller())
    observers.ended(outcome())
    observers.refused(REFUSAL)
    observers.batches((Raising(), listening)).batch_done(batch_done())
    assert len(listening.heard) == 4
    assert observers.failures == {"Raising": 4}
    [record] = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
    assert "observer=Raising at=began" in caplog.text


def test_what_ends_a_task_passes() -> None:
    class Ending(Listening):
        def began(self, caller: Asker) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers((Ending(),)).began(caller())
