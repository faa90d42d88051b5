from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.teacher.support import Support
from preceptor_client.types import ResponseScores

# N = positions, V = vocabulary, K = support size

VOCABULARY_SIZE, TOP_K = 24, 5


def _teacher(num_rows: int = 40, *, seed: int = 0) -> npt.NDArray[np.float64]:
    """Logprobs over the whole vocabulary, peaked, [N, V]."""
    logits_NV = np.random.default_rng(seed).normal(scale=3.0, size=(num_rows, VOCABULARY_SIZE))
    logprobs_NV: npt.NDArray[np.float64] = logits_NV - np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))
    return logprobs_NV


def _answer(
    logprobs_NV: npt.NDArray[np.float64],
    *,
    sampled_N: npt.NDArray[np.int64],
    candidates_NC: npt.NDArray[np.int64] | None = None,
) -> ResponseScores:
    """As a teacher server answers: its top K, and the candidates."""
    rows_N = np.arange(len(logprobs_NV))
    ids_NK = np.argsort(-logprobs_NV, axis=1, kind="stable")[:, :TOP_K]
    tail_N = 1 - np.exp(np.take_along_axis(logprobs_NV, ids_NK, axis=1)).sum(axis=1)
    return ResponseScores(
        status_T=np.full(len(rows_N), PositionStatus.OK, np.uint8),
        positions_N=rows_N,
        support_ids_NK=ids_NK,
        support_logprobs_NK=np.take_along_axis(logprobs_NV, ids_NK, axis=1).astype(np.float32),
        sampled_logprobs_N=logprobs_NV[rows_N, sampled_N].astype(np.float32),
        log_tail_mass_N=np.log(tail_N).astype(np.float32),
        entropies_N=np.zeros(len(rows_N), np.float32),
        candidate_ids_NC=candidates_NC,
        candidate_logprobs_NC=None
        if candidates_NC is None
        else np.take_along_axis(logprobs_NV, candidates_NC, axis=1).astype(np.float32),
    )


def _members(support: Support, row: int) -> dict[int, float]:
    """The tokens inside, and their logprobs; a token twice is a defect."""
    inside = [
        (int(token), float(logprob))
        for token, logprob in zip(support.ids_NK[row], support.teacher_logprobs_NK[row], strict=True)
        if logprob > -math.inf
    ]
    assert len(dict(inside)) == len(inside)
    return dict(inside)


@pytest.mark.parametrize("include_sampled", [False, True])
@pytest.mark.parametrize("kind", ["teacher", "teacher_top_p", "student", "union", "intersection"])
def test_support_holds_the_tokens_of_its_definition_and_all_other_mass_is_tail(
    kind: str, include_sampled: bool
) -> None:
    """Against sets made one position at a time."""
    rng = np.random.default_rng(1)
    logprobs_NV = _teacher()
    num_rows = len(logprobs_NV)
    sampled_N = rng.integers(0, VOCABULARY_SIZE, num_rows)
    student_NC = np.stack([rng.permutation(VOCABULARY_SIZE)[:TOP_K] for _ in range(num_rows)])
    student_NC[: num_rows // 2] = np.argsort(-logprobs_NV[: num_rows // 2], axis=1)[:, 2 : 2 + TOP_K]
    config = ObjectiveConfig.model_validate(
        {"support": kind, "include_sampled": include_sampled}
        | ({"support_options": {"top_p": 0.8}} if kind == "teacher_top_p" else {})
    )
    scores = _answer(logprobs_NV, sampled_N=sampled_N, candidates_NC=student_NC)
    support = config.make_support().select(scores, sampled_ids_N=sampled_N)
    sizes = set()
    for row, logprobs_V in enumerate(logprobs_NV):
        teacher = np.argsort(-logprobs_V, kind="stable")[:TOP_K].tolist()
        if kind == "teacher_top_p":
            mass = 0.0
            kept: list[int] = []
            for token in teacher:
                if mass >= 0.8 and len(kept) >= 2:
                    break
                kept.append(token)
                mass += math.exp(logprobs_V[token])
            teacher = kept
        expected = {"student": set(), "union": set(teacher)}.get(kind, set(teacher))
        if kind in ("student", "union"):
            expected |= set(student_NC[row].tolist())
        if kind == "intersection":
            expected &= set(student_NC[row].tolist())
        if include_sampled:
            expected.add(int(sampled_N[row]))
        members = _members(support, row)
        assert set(members) == expected
        assert members == pytest.approx({token: logprobs_V[token] for token in expected}, abs=1e-5)
        outside = sum(math.exp(logprobs_V[token]) for token in set(range(VOCABULARY_SIZE)) - expected)
        assert math.exp(support.teacher_log_tail_N[row]) == pytest.approx(outside, abs=1e-6)
        assert bool(support.is_sampled_inside_N[row]) == (int(sampled_N[row]) in expected)
        sizes.add(len(expected))
    assert support.sizes_N.tolist() == [len(_members(support, row)) for row in range(num_rows)]
    assert len(sizes) > 1 or (kind in ("teacher", "student") and not include_sampled)


def test_a_sharp_teacher_keeps_two_tokens_under_top_p() -> None:
    """The first alone holds the mass; renormalised over one token there would be nothing to learn."""
    logprobs_NV = np.log(np.array([[0.999, 0.0004, 0.0003, 0.0002, 0.00005, 0.00005]]))
    config = ObjectiveConfig(support="teacher_top_p", support_options={"top_p": 0.5})
    support = config.make_support().select(_answer(logprobs_NV, sampled_N=np.array([3])), sampled_ids_N=np.array([3]))
    assert support.ids_NK.tolist() == [[0, 1]]
    assert math.exp(support.teacher_log_tail_N[0]) == pytest.approx(0.0006, rel=1e-3)


def test_what_fills_a_row_up_is_never_a_member() -> None:
    """The filler repeats an id that stands in the row; the sampled token equals it, and is inside once."""
    scores = ResponseScores(
        status_T=np.array([PositionStatus.OK], np.uint8),
        positions_N=np.array([0]),
        support_ids_NK=np.array([[7, 3, 7]]),
        support_logprobs_NK=np.array([[math.log(0.5), math.log(0.25), -math.inf]], np.float32),
        sampled_logprobs_N=np.log(np.array([0.25], np.float32)),
        log_tail_mass_N=np.log(np.array([0.25], np.float32)),
        entropies_N=np.zeros(1, np.float32),
        candidate_ids_NC=np.array([[3, 9]]),
        candidate_logprobs_NC=np.array([[math.log(0.25), -math.inf]], np.float32),
    )
    union = ObjectiveConfig(support="union").make_support().select(scores, sampled_ids_N=np.array([3]))
    assert sorted(_members(union, 0)) == [3, 7]
    student = ObjectiveConfig(support="student").make_support().select(scores, sampled_ids_N=np.array([3]))
    assert _members(student, 0) == pytest.approx({3: math.log(0.25)})
    assert math.exp(student.teacher_log_tail_N[0]) == pytest.approx(0.75)
    assert student.sizes_N.tolist() == [1]


def test_no_scored_position_is_an_empty_support() -> None:
    for kind in ("teacher", "teacher_top_p", "student", "union", "intersection"):
        config = ObjectiveConfig.model_validate({"support": kind, "include_sampled": True})
        nothing = np.zeros(0, np.int64)
        scores = _answer(_teacher(0), sampled_N=nothing, candidates_NC=np.zeros((0, 4), np.int64))
        assert len(config.make_support().select(scores, sampled_ids_N=nothing).sizes_N) == 0


def test_an_answer_without_the_students_tokens_is_refused() -> None:
    scores = _answer(_teacher(2), sampled_N=np.array([0, 1]))
    with pytest.raises(CorruptAnswerError, match="asked for"):
        ObjectiveConfig(support="union").make_support().select(scores, sampled_ids_N=np.array([0, 1]))


def test_a_rule_of_ones_own_is_named_in_the_settings_and_takes_the_sampled_token_too() -> None:
    logprobs_NV = _teacher(1)
    sampled_N, student_NC = np.array([20]), np.array([[20, 3, 9, 4]])
    scores = _answer(logprobs_NV, sampled_N=sampled_N, candidates_NC=student_NC)
    own = {"support": "tests.unit.client.train.objective.own:StudentsFirst", "support_options": {"num_tokens": 3}}
    config = ObjectiveConfig.model_validate(own)
    assert config.needs_student_tokens
    assert set(_members(config.make_support().select(scores, sampled_ids_N=sampled_N), 0)) == {20, 3, 9}
    fewer = {"support": own["support"], "support_options": {"num_tokens": 1}, "include_sampled": True}
    rule = ObjectiveConfig.model_validate(fewer).make_support()
    assert rule.needs_student_tokens
    other_N = np.array([11])
    support = rule.select(_answer(logprobs_NV, sampled_N=other_N, candidates_NC=student_NC), sampled_ids_N=other_N)
    assert set(_members(support, 0)) == {20, 11}
    assert support.is_sampled_inside_N.tolist() == [True]


def test_a_rule_that_does_not_say_what_it_needs_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say whether it needs_student_tokens"):
        ObjectiveConfig(support="tests.unit.client.train.objective.own:SilentSupport")
