"""A call that fails is counted once: as the outcome of one that reached scoring, or as a refusal of another."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest
from preceptor_server.app import Refusals
from preceptor_server.callers import Caller
from preceptor_server.calls import AskedResponse, ScoreCall, TeacherIds
from preceptor_server.errors import InvalidRequestError, QuotaExceededError, ServerError
from preceptor_server.observability.observer import Asker, Observers, Outcome, Refusal
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Tenant

from tests.unit.server.hosting import hosted_teacher

CALLER = Caller(tenant=Tenant(name="a", max_bytes_in_flight=1), name="a", transport="grpc")
IDS = np.array([3, 4], np.int64)


class Counts:
    """An observer."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()

    def began(self, caller: Asker) -> None:
        self.counted["began"] += 1

    def ended(self, outcome: Outcome) -> None:
        self.counted[f"ended {outcome.reason}"] += 1

    def refused(self, refusal: Refusal) -> None:
        self.counted[f"refused {refusal.reason}"] += 1


def tell(refusals: Refusals, error: Exception) -> None:
    """As the edges do with every error."""
    refusals.refused(error, caller=CALLER, peer="10.0.0.7", method="Score", transport="grpc")


async def test_what_scoring_raised_is_an_outcome_and_no_refusal_besides() -> None:
    counts = Counts()
    observers: Observers[Outcome] = Observers((counts,))
    service = ScoreService(Teachers([hosted_teacher()]), observers=observers)
    response = AskedResponse(ids_T=IDS, score_mask_T=np.ones(2, np.bool_))
    for teacher, reason in (("nobody", "UNKNOWN_TEACHER"), ("professor", "TOO_MANY_BYTES")):
        call = ScoreCall(teacher=teacher, prompt=TeacherIds(ids_P=IDS), responses=(response,), top_k=2, temperature=1.0)
        with pytest.raises(ServerError) as caught:
            await service.score(call, CALLER, timeout_seconds=None)
        tell(Refusals(observers), caught.value)
        assert counts.counted == {"began": 1, f"ended {reason}": 1}
        counts.counted.clear()


def test_what_never_reached_scoring_is_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    refusals = Refusals(Observers((counts,)))
    with caplog.at_level(logging.WARNING):
        tell(refusals, InvalidRequestError("request", "the bytes are no message", reason="MALFORMED_MESSAGE"))
        tell(refusals, ValueError("unforeseen"))
        assert caplog.text == ""
        late = QuotaExceededError("too many", reason="TOO_MANY_CALLS", retry_after_seconds=1)
        late.is_outcome = True
        tell(refusals, late)
    assert counts.counted == {"refused MALFORMED_MESSAGE": 1, "refused INTERNAL": 1}
    assert "peer=a reason=TOO_MANY_CALLS" in caplog.text  # who passes its limits is told of, wherever it did
