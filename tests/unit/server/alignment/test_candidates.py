"""Candidates of a student whose ids correspond one to one, against dictionaries that are filled from whole rows."""

# T = tokens of a response, N = positions, V = both vocabularies, C = candidates per position, K = support size

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from preceptor.wire import PositionStatus, VocabularyRelation
from preceptor_server.alignment import candidates
from preceptor_server.alignment.candidates import are_among, merged_teacher_ids, teacher_candidates
from preceptor_server.alignment.one_to_one import read_one_to_one
from preceptor_server.alignment.projection import num_teacher_tokens, project
from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.types import END, NO_PLACE, Alignment
from preceptor_server.types import ResponseColumns, ResponseToScore

from tests.engines.fake import dense_columns
from tests.unit.server.alignment.alignments import alignment_of
from tests.unit.server.candidate_groups import assert_agrees_with_support
from tests.unit.server.groups import response_of

V = 23
FLOAT32_NATS = 2e-6
"""Columns are float32, and a sum of masses adds some of its roundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An alignment, a response of the student with candidates, and the teacher's logits at each of its tokens."""

    alignment: Alignment
    response: ResponseToScore
    logits_TV: npt.NDArray[np.float64]

    def answer(self, *, top_k: int, merges: bool) -> tuple[Reading, ResponseColumns]:
        """The way that a call takes: read, ask, project."""
        alignment = self.alignment
        reading = read_one_to_one(self.response, alignment)
        merged_ids = merged_teacher_ids(alignment, merges_end_tokens=merges)
        asked = ResponseToScore(
            ids_T=reading.teacher_ids_M,
            score_mask_T=reading.wanted_M,
            candidate_ids_TC=teacher_candidates(self.response, reading, alignment, merged_ids=merged_ids),
        )
        asked_k = min(num_teacher_tokens(alignment, top_k=top_k, merges_end_tokens=merges), V)
        is_read_T = alignment.pairing.teacher_of_student_U[self.response.ids_T] != NO_PLACE
        columns = dense_columns(self.logits_TV[is_read_T], asked, top_k=asked_k)
        projected = project(
            columns,
            reading,
            alignment,
            top_k=top_k,
            merges_end_tokens=merges,
            candidate_ids_TC=self.response.candidate_ids_TC,
        )
        return reading, projected.columns

    def masses(self, position: int, *, merges: bool) -> dict[int, float]:
        """The teacher's mass on each token of the student at one position, of all V."""
        logits_V, sampled = self.logits_TV[position], int(self.response.ids_T[position])
        probabilities = np.exp(logits_V - np.logaddexp.reduce(logits_V))
        ends = self.alignment.student_end_ids
        own_end = sampled if sampled in ends else next(iter(ends), NO_PLACE)
        places = (self.alignment if merges else self.alignment.pairing).projection_V
        landed: defaultdict[int, float] = defaultdict(float)
        for token, mass in enumerate(probabilities):
            place = int(places[token])
            landed[own_end if place == END else place] += float(mass)
        read = int(self.alignment.pairing.teacher_of_student_U[sampled])
        place = own_end if places[read] == END else int(places[read])
        if place != sampled:  # what was sampled is the sampled token's, wherever that mass goes elsewhere
            landed[place] -= float(probabilities[read])
            landed[sampled] += float(probabilities[read])
        landed.pop(NO_PLACE, None)
        return landed


def random_case(seed: int, *, num_absent: int = 0, has_pair: bool = False, spread: float = 3.0) -> Case:
    """Permuted ids, up to two end tokens of the student and three of the teacher's; `num_absent` tokens of each side
    have no counterpart, and with `has_pair` two tokens are paired by hand."""
    rng = np.random.default_rng(seed)
    projection_V = rng.permutation(V)
    absent = rng.choice(V, num_absent, replace=False)
    projection_V[absent] = NO_PLACE
    counterparts_U = np.full(V, NO_PLACE)
    has_place = np.flatnonzero(projection_V != NO_PLACE)
    counterparts_U[projection_V[has_place]] = has_place
    readable = np.flatnonzero(counterparts_U != NO_PLACE)
    ends = tuple(int(i) for i in rng.choice(readable, rng.integers(1, 3), replace=False))
    others = rng.choice(has_place, rng.integers(0, 3), replace=False)
    end_class = tuple(sorted({*(int(counterparts_U[end]) for end in ends), *others.tolist()}))
    alignment = alignment_of(
        relation=VocabularyRelation.PERMUTED,
        projection_V=projection_V,
        teacher_of_student_U=counterparts_U,
        num_student_ids=V,
        student_end_ids=ends,
        end_class=end_class,
    )
    if has_pair:
        alignment = with_pair(alignment, rng)
    ids_T = rng.choice(readable, 12)
    ids_T[:2] = ends[0], ends[-1]
    ids_TC = rng.integers(0, V, (12, int(rng.integers(1, V + 4))))
    ids_TC[:, 0] = ids_T
    ids_TC[:, -1] = ends[0]
    mask_T = rng.random(12) < 0.8
    mask_T[:2] = True
    logits_TV = rng.normal(0, spread, (12, V))
    return Case(
        alignment=alignment, response=response_of(ids_T, mask_T.tolist(), candidates=ids_TC), logits_TV=logits_TV
    )


def with_pair(alignment: Alignment, rng: np.random.Generator) -> Alignment:
    """A teacher token that is no end goes to another token of the student; that one's own counterpart keeps its place,
    as text does, or loses it, as a special token does."""
    plain = np.flatnonzero(alignment.projection_V >= 0)
    teacher_id, natural = (int(i) for i in rng.choice(plain, 2, replace=False))
    student_id = int(alignment.projection_V[natural])
    projection_V = alignment.projection_V.copy()
    if rng.random() < 0.5:
        projection_V[natural] = NO_PLACE
    projection_V[teacher_id] = student_id
    configured = alignment_of(
        relation=VocabularyRelation.PERMUTED,
        projection_V=projection_V,
        num_student_ids=V,
        configured=((student_id, teacher_id),),
    ).paired
    return replace(alignment, projection_V=projection_V, paired=configured)


def assert_candidates_are(case: Case, columns: ResponseColumns, *, merges: bool) -> None:
    assert case.response.candidate_ids_TC is not None
    assert columns.candidate_logprobs_NC is not None
    positions = np.flatnonzero(columns.status_T == PositionStatus.OK)
    assert columns.candidate_logprobs_NC.shape == (len(positions), case.response.candidate_ids_TC.shape[1])
    for row, position in enumerate(positions):
        masses = case.masses(int(position), merges=merges)
        for token, logprob in zip(
            case.response.candidate_ids_TC[position], columns.candidate_logprobs_NC[row], strict=True
        ):
            mass = masses.get(int(token), 0.0)
            if mass > 1e-12:  # where masses cancel, rounding may leave some
                assert logprob == pytest.approx(math.log(mass), abs=FLOAT32_NATS, rel=1e-6)
            else:
                assert logprob < math.log(1e-7)


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 5, V])
@pytest.mark.parametrize("seed", range(15))
def test_candidates_are_the_masses_of_whole_rows_and_agree_with_the_support(
    seed: int, top_k: int, merges: bool
) -> None:
    case = random_case(seed)
    _, columns = case.answer(top_k=top_k, merges=merges)
    assert_candidates_are(case, columns, merges=merges)
    assert_agrees_with_support(case.response, columns)


@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_candidates_without_a_counterpart_are_impossible_and_the_others_keep_their_own(seed: int, merges: bool) -> None:
    case = random_case(seed, num_absent=6)
    _, columns = case.answer(top_k=3, merges=merges)
    assert_candidates_are(case, columns, merges=merges)
    assert columns.candidate_logprobs_NC is not None
    assert case.response.candidate_ids_TC is not None
    named_NC = case.response.candidate_ids_TC[columns.status_T == PositionStatus.OK]
    is_absent_NC = case.alignment.pairing.teacher_of_student_U[named_NC] == NO_PLACE
    assert (columns.candidate_logprobs_NC[is_absent_NC] == -np.inf).all()


@pytest.mark.parametrize("top_k", [1, 3, 8])
@pytest.mark.parametrize("seed", range(25))
def test_pairs_that_were_asked_for_are_summed_as_in_the_support(seed: int, top_k: int) -> None:
    case = random_case(seed, has_pair=True)
    _, columns = case.answer(top_k=top_k, merges=True)
    assert_candidates_are(case, columns, merges=True)
    assert_agrees_with_support(case.response, columns)


@pytest.mark.parametrize("spread", [0.01, 3.0])
@pytest.mark.parametrize("top_k", [1, 2, 5, V - 4])
@pytest.mark.parametrize("seed", range(15))
def test_merged_supports_are_the_likeliest_of_whole_sums_however_unlikely_their_parts(
    seed: int, top_k: int, spread: float
) -> None:
    # At a spread of 0.01 no end token need be among the likeliest, and their sum is above all others.
    case = random_case(seed, has_pair=seed % 2 == 0, spread=spread)
    _, columns = case.answer(top_k=top_k, merges=True)
    for row, position in enumerate(np.flatnonzero(columns.status_T == PositionStatus.OK)):
        masses = case.masses(int(position), merges=True)
        largest = sorted(masses.values(), reverse=True)[:top_k]
        np.testing.assert_allclose(
            np.exp(columns.support_logprobs_NK[row].astype(np.float64)), largest, rtol=1e-5, atol=1e-7
        )
        outside = 1 - sum(masses[int(token)] for token in columns.support_ids_NK[row])
        assert math.exp(columns.log_tail_mass_N[row]) == pytest.approx(outside, abs=1e-6)


def test_end_mass_is_under_the_students_own_end_token_and_nothing_under_its_others() -> None:
    identity = np.arange(4)
    alignment = alignment_of(
        relation=VocabularyRelation.PERMUTED,
        projection_V=identity,
        teacher_of_student_U=identity,
        num_student_ids=4,
        student_end_ids=(1, 2),
        end_class=(1, 2, 3),
    )
    response = response_of([2, 1, 0], candidates=[[0, 1, 2, 3, 2]] * 3)
    case = Case(alignment=alignment, response=response, logits_TV=np.log([[0.85, 0.04, 0.01, 0.1]] * 3))

    _, merged = case.answer(top_k=1, merges=True)
    _, by_itself = case.answer(top_k=1, merges=False)

    assert merged.candidate_logprobs_NC is not None
    assert by_itself.candidate_logprobs_NC is not None
    np.testing.assert_allclose(
        np.exp(merged.candidate_logprobs_NC),
        [[0.85, 0, 0.15, 0, 0.15], [0.85, 0.15, 0, 0, 0], [0.85, 0.15, 0, 0, 0]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(np.exp(by_itself.candidate_logprobs_NC), [[0.85, 0.04, 0.01, 0.1, 0.01]] * 3, rtol=1e-6)


def test_support_of_the_whole_vocabulary_repeats_no_end_token() -> None:
    case = random_case(1)
    _, columns = case.answer(top_k=V, merges=True)
    for ids, logprobs in zip(columns.support_ids_NK, columns.support_logprobs_NK, strict=True):
        possible = ids[logprobs > -np.inf]
        assert len(set(possible.tolist())) == len(possible)


def test_nothing_is_asked_for_where_nothing_is_named_or_merged() -> None:
    case = random_case(0)
    silent = response_of(case.response.ids_T)
    reading = read_one_to_one(silent, case.alignment)
    nothing = merged_teacher_ids(case.alignment, merges_end_tokens=False)
    assert nothing.tolist() == []
    assert teacher_candidates(silent, reading, case.alignment, merged_ids=nothing) is None
    strangers = replace(
        case.alignment, pairing=replace(case.alignment.pairing, relation=VocabularyRelation.OVERLAPPING)
    )
    assert merged_teacher_ids(strangers, merges_end_tokens=True).tolist() == []


def test_engine_that_scores_no_candidates_sums_the_end_tokens_that_it_lists() -> None:
    case = random_case(4)
    silent = response_of(case.response.ids_T)
    reading = read_one_to_one(silent, case.alignment)
    asked = ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M)
    columns = dense_columns(case.logits_TV, asked, top_k=V)
    projected = project(columns, reading, case.alignment, top_k=4, merges_end_tokens=True).columns
    _, whole = replace(case, response=silent).answer(top_k=4, merges=True)
    np.testing.assert_array_equal(projected.support_ids_NK, whole.support_ids_NK)
    np.testing.assert_allclose(projected.support_logprobs_NK, whole.support_logprobs_NK, atol=FLOAT32_NATS)
    assert projected.candidate_logprobs_NC is None
    assert whole.candidate_logprobs_NC is None


def test_engine_that_scores_no_candidates_repeats_no_end_token_over_the_whole_vocabulary() -> None:
    identity = np.arange(3)
    alignment = alignment_of(
        relation=VocabularyRelation.PERMUTED,
        projection_V=identity,
        teacher_of_student_U=identity,
        num_student_ids=3,
        student_end_ids=(1,),
        end_class=(1, 2),
    )
    reading = read_one_to_one(response_of([0]), alignment)
    asked = ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M)
    columns = dense_columns(np.log([[0.5, 0.2, 0.3]]), asked, top_k=3)
    projected = project(columns, reading, alignment, top_k=3, merges_end_tokens=True).columns
    assert projected.support_ids_NK[:, :2].tolist() in ([[0, 1]], [[1, 0]])
    np.testing.assert_allclose(projected.support_logprobs_NK, [[math.log(0.5), math.log(0.5), -math.inf]], rtol=1e-6)


def test_tokens_are_found_in_the_rows_that_list_them() -> None:
    rows = np.array([[5, 2, 9], [1, 1, 4], [0, 3, 7]])
    assert are_among(np.array([2, 4, 9]), rows).tolist() == [[True, False, True], [False, True, False], [False] * 3]


def test_students_tokens_without_a_counterpart_leave_their_candidates_out() -> None:
    alignment = alignment_of(
        relation=VocabularyRelation.PADDED,
        projection_V=np.array([0, 1, 2]),
        teacher_of_student_U=np.array([0, 1, 2, NO_PLACE]),
        num_student_ids=4,
    )
    response = response_of([2, 3, 1], candidates=[[0, 3], [1, 1], [3, 2]])
    logits_TV = np.log([[0.2, 0.3, 0.5], [1.0, 1.0, 1.0], [0.7, 0.2, 0.1]])
    _, columns = Case(alignment=alignment, response=response, logits_TV=logits_TV).answer(top_k=2, merges=True)
    assert columns.status_T.tolist() == [PositionStatus.OK, PositionStatus.UNMAPPED, PositionStatus.OK]
    assert columns.candidate_logprobs_NC is not None
    expected_NC = [[math.log(0.2), -math.inf], [-math.inf, math.log(0.1)]]
    np.testing.assert_allclose(columns.candidate_logprobs_NC, expected_NC, rtol=1e-6)


@pytest.mark.parametrize("width", ["<u2", "<u4"])
@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_packed_candidates_a_few_rows_at_a_time_are_answered_to_the_bit_as_all_of_them_in_64_bits(
    seed: int, merges: bool, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(seed, num_absent=seed % 3, has_pair=seed % 2 == 0)
    assert case.response.candidate_ids_TC is not None
    _, expected = case.answer(top_k=5, merges=merges)
    monkeypatch.setattr(candidates, "_ROWS_AT_ONCE", 5)
    packed = replace(case.response, candidate_ids_TC=case.response.candidate_ids_TC.astype(width))
    _, columns = replace(case, response=packed).answer(top_k=5, merges=merges)
    for name in ("support_ids_NK", "support_logprobs_NK", "log_tail_mass_N", "candidate_logprobs_NC"):
        np.testing.assert_array_equal(getattr(columns, name), getattr(expected, name))


@pytest.mark.parametrize(("num_ids", "width"), [(65_536, "<u2"), (65_537, "<u4"), (70_000, "<u4")])
def test_counterparts_are_asked_for_in_the_narrowest_integers_up_to_the_last_id(num_ids: int, width: str) -> None:
    backwards = np.arange(num_ids)[::-1]
    alignment = alignment_of(
        relation=VocabularyRelation.PERMUTED,
        projection_V=backwards,
        teacher_of_student_U=backwards,
        num_student_ids=num_ids,
    )
    named = np.array([[0, 1, 65_535, num_ids - 1]], "<u4")
    response = replace(response_of([3]), candidate_ids_TC=named)
    asked = teacher_candidates(
        response, read_one_to_one(response, alignment), alignment, merged_ids=np.array([num_ids - 1])
    )
    assert asked is not None
    assert asked.dtype == np.dtype(width)
    assert asked.tolist() == [[num_ids - 1, num_ids - 2, num_ids - 65_536, 0, num_ids - 1]]
