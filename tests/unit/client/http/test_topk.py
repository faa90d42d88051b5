from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from preceptor.wire import PositionStatus, SegmentationPolicy
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.http.answers import Topk
from preceptor_client.http.topk import scores_of
from pydantic import TypeAdapter

from tests.unit.client.http.scripted_topk import topk
from tests.unit.client.scripted_teacher import TEXT_PROMPT_IDS, dense_logprobs

IDS = [21, 32, 80]
Change = Callable[[dict[str, Any]], object]  # Any: the leaves are whatever JSON holds


def answer(change: Change = lambda body: None, *, top_k: int = 4) -> Topk:
    body = topk({"responses": [{"ids": IDS}], "top_k": top_k, "temperature": 0.5})
    change(body)
    return TypeAdapter(Topk).validate_python(body)


def test_the_columns_are_the_teachers_own_numbers() -> None:
    scores = scores_of(answer())
    one = scores.responses[0]
    dense_TV = dense_logprobs(np.array(IDS), temperature=0.5)
    assert one.sampled_logprobs_N == pytest.approx(dense_TV[range(3), IDS], abs=1e-5)  # f32
    assert one.support_ids_NK.tolist() == np.argsort(-dense_TV, axis=1)[:, :4].tolist()
    assert one.support_logprobs_NK == pytest.approx(-np.sort(-dense_TV, axis=1)[:, :4], abs=1e-5)
    assert one.entropies_N == pytest.approx(-(np.exp(dense_TV) * dense_TV).sum(axis=1), abs=1e-5)
    assert one.positions_N.tolist() == [0, 1, 2]
    assert scores.prompt_ids.tolist() == list(TEXT_PROMPT_IDS)
    assert (scores.teacher, scores.revision, scores.top_k, scores.temperature) == ("tutor", "r1", 4, 0.5)
    assert scores.segmentation is SegmentationPolicy.AS_IS
    assert scores.timings.forward_ms == 3.0


def test_null_is_minus_infinity_and_null_entropies_are_none() -> None:
    def cut(body: dict[str, Any]) -> None:
        one = body["responses"][0]
        one["entropies"] = None
        for row, logprobs in enumerate(one["support_logprobs"]):
            mass = float(np.exp(np.array(logprobs[:2])).sum())
            logprobs[2:] = [None, None]
            one["log_tail_mass"][row] = float(np.log1p(-mass))
            one["sampled_logprobs"][row] = None
        one["support_ids"] = [[90, 91, 90, 90]] * 3

    one = scores_of(answer(cut)).responses[0]
    assert np.isneginf(one.support_logprobs_NK[:, 2:]).all()
    assert np.isneginf(one.sampled_logprobs_N).all()
    assert one.entropies_N is None


def test_a_position_without_a_score_has_its_status_and_no_row() -> None:
    def drop_second(body: dict[str, Any]) -> None:
        one = body["responses"][0]
        one["status"][1] = "misaligned"
        for name in ("positions", "sampled_logprobs", "log_tail_mass", "entropies", "support_ids", "support_logprobs"):
            del one[name][1]

    one = scores_of(answer(drop_second)).responses[0]
    assert one.positions_N.tolist() == [0, 2]
    assert one.status_T.tolist() == [PositionStatus.OK, PositionStatus.MISALIGNED, PositionStatus.OK]


def one_of(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda body: change(body["responses"][0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (one_of(lambda one: one["sampled_logprobs"].reverse()), "sampled_logprobs of row"),
        (one_of(lambda one: one["support_logprobs"][0].reverse()), "not sorted"),
        (one_of(lambda one: one["log_tail_mass"].__setitem__(1, -0.01)), "of row 1 sum to"),
        (one_of(lambda one: one["entropies"].__setitem__(0, -1.0)), "entropies of row 0 is negative"),
        (one_of(lambda one: one["entropies"].pop()), "entropies holds 2 entries instead of 3"),
        (one_of(lambda one: one["support_ids"][2].pop()), "support_ids does not hold 3 rows of 4"),
        (one_of(lambda one: one["support_logprobs"].pop()), "support_logprobs does not hold 3 rows of 4"),
        (one_of(lambda one: one["positions"].reverse()), "positions are others"),
        (one_of(lambda one: one["ids"].append(7)), "status holds 3 entries instead of 4"),
        (one_of(lambda one: one["ids"].reverse()), "digest"),
        (one_of(lambda one: one.update(digest="no")), "digest is 'no', which is not hexadecimal"),
        (one_of(lambda one: one["status"].__setitem__(0, "tired")), "status holds 'tired'"),
        (one_of(lambda one: one.update(unmapped_mass=2.0)), "unmapped_mass"),
        (one_of(lambda one: one.update(teacher_rows=[0, 1, 2])), "teacher_rows point into"),
        (lambda body: body["prompt_ids"].append(1), "digest"),
        (lambda body: body.update(segmentation="magic"), "segmentation is 'magic'"),
    ],
)
def test_columns_that_cannot_be_the_teachers_are_refused(change: Change, says: str) -> None:
    with pytest.raises(CorruptAnswerError, match=says):
        scores_of(answer(change))
