"""The projection against dictionaries that are filled position by position, and against what must always hold."""

# N = positions, M = teacher tokens, V = teacher's vocabulary, U = student's vocabulary, K = support size

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor.wire import PositionStatus, VocabularyRelation
from preceptor_server.alignment.projection import Projected, num_teacher_tokens, project
from preceptor_server.alignment.reading import Conversion, Reading
from preceptor_server.alignment.types import END, IMPOSSIBLE, NO_PLACE, Alignment
from preceptor_server.types import ResponseColumns, ResponseToScore

from tests.engines.fake import dense_columns
from tests.unit.server.alignment.alignments import alignment_of

V, U = 23, 11
ARRAYS = [name for name in ResponseColumns.__slots__ if name != "candidate_logprobs_NC"]
ENDS = (3, 7)


def random_alignment(rng: np.random.Generator, *, ends: tuple[int, ...] = ENDS) -> Alignment:
    """Every teacher token lands somewhere at random; some nowhere, some on the end."""
    return alignment_of(
        relation=VocabularyRelation.OVERLAPPING,
        projection_V=rng.integers(END if ends else NO_PLACE, U, V),
        with_space_V=rng.integers(NO_PLACE, U, V),
        without_space_V=np.where(rng.random(V) < 0.3, IMPOSSIBLE, rng.integers(NO_PLACE, U, V)),
        student_end_ids=ends,
        num_student_ids=U,
    )


def random_reading(rng: np.random.Generator, *, num_tokens: int) -> Reading:
    """Paths of one to three tokens from distinct rows, with every conversion."""
    rows_N = np.flatnonzero(rng.random(num_tokens) < 0.7)
    if not len(rows_N):
        rows_N = np.array([0])
    path_ends_N = np.minimum(rows_N + rng.integers(1, 4, len(rows_N)), num_tokens)
    return Reading(
        teacher_ids_M=rng.integers(0, V, num_tokens),
        wanted_M=np.ones(num_tokens, np.bool_),
        status_T=np.full(len(rows_N), PositionStatus.OK, np.uint8),
        rows_N=rows_N,
        path_ends_N=path_ends_N,
        sampled_ids_N=rng.integers(0, U, len(rows_N)),
        conversions_N=rng.integers(0, 3, len(rows_N)).astype(np.uint8),
    )


def dense(reading: Reading, rng: np.random.Generator, *, top_k: int, spread: float = 3.0) -> ResponseColumns:
    logits_MV = rng.normal(0, spread, (len(reading.teacher_ids_M), V))
    response = ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M)
    return dense_columns(logits_MV, response, top_k=top_k)


def by_hand(columns: ResponseColumns, reading: Reading, alignment: Alignment, position: int) -> dict[int, float]:
    """The mass that lands on each student token at one position; under None, what lands on none."""
    row = int(reading.rows_N[position])
    next_id, sampled = int(reading.teacher_ids_M[row]), int(reading.sampled_ids_N[position])
    conversion = reading.conversions_N[position]
    own_end = sampled if sampled in alignment.student_end_ids else next(iter(alignment.student_end_ids), NO_PLACE)
    maps = (alignment.projection_V, alignment.pairing.with_space_V, alignment.pairing.without_space_V)

    def place(token: int) -> int:
        landed = int(maps[conversion][token])
        return own_end if landed == END else landed

    masses = {
        int(token): math.exp(float(logprob))
        for token, logprob in zip(columns.support_ids_NK[row], columns.support_logprobs_NK[row], strict=True)
    }
    masses.setdefault(next_id, math.exp(float(columns.sampled_logprobs_N[row])))
    tail = max(1.0 - sum(masses.values()), 0.0)
    path = math.exp(sum(float(columns.sampled_logprobs_N[m]) for m in range(row, reading.path_ends_N[position])))
    if conversion == Conversion.WITHOUT_SPACE:
        possible = {t: m for t, m in masses.items() if t == next_id or maps[conversion][t] != IMPOSSIBLE}
        total = sum(possible.values()) + tail
        masses, path = {t: m / total for t, m in possible.items()}, path / total
    landed: defaultdict[int, float] = defaultdict(float)
    for token, mass in masses.items():
        landed[place(token)] += mass
    if place(next_id) != sampled:
        landed[place(next_id)] -= path
        landed[sampled] += path
    return {own: mass for own, mass in landed.items() if own >= 0}


@pytest.mark.parametrize("seed", range(40))
def test_masses_are_those_that_a_dictionary_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    top_k, alignment = 4, random_alignment(np.random.default_rng(seed + 1000))
    reading = random_reading(rng, num_tokens=12)
    columns = dense(reading, rng, top_k=8)

    projected = project(columns, reading, alignment, top_k=top_k, merges_end_tokens=True).columns

    row = 0
    for position in range(len(reading.rows_N)):
        expected = {
            token: mass for token, mass in by_hand(columns, reading, alignment, position).items() if mass > 1e-9
        }
        if projected.status_T[position] != PositionStatus.OK:
            assert not expected
            continue
        largest = sorted(expected.values(), reverse=True)[:top_k]
        logprobs = projected.support_logprobs_NK[row].astype(np.float64)
        # Float32 holds logprobs to 1e-6 of their size, so masses to as much.
        np.testing.assert_allclose(np.exp(logprobs[: len(largest)]), largest, rtol=1e-5, atol=1e-7)
        for token, logprob in zip(projected.support_ids_NK[row], logprobs, strict=True):
            if logprob > -15:
                assert math.exp(logprob) == pytest.approx(expected[int(token)], rel=1e-5)
        sampled = int(reading.sampled_ids_N[position])
        assert math.exp(projected.sampled_logprobs_N[row]) == pytest.approx(expected.get(sampled, 0.0), abs=1e-6)
        row += 1
    assert row == len(projected.sampled_logprobs_N)


def _project_random(seed: int, *, top_k: int, num_tokens: int, spread: float) -> tuple[Reading, Projected]:
    rng = np.random.default_rng(seed)
    alignment, reading = random_alignment(rng), random_reading(rng, num_tokens=num_tokens)
    columns = dense(reading, rng, top_k=min(2 * top_k, V), spread=spread)
    return reading, project(columns, reading, alignment, top_k=top_k, merges_end_tokens=True)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 11), st.integers(1, 20), st.sampled_from([0.1, 3.0, 60.0, 400.0]))
def test_support_and_tail_hold_all_mass_whatever_lands_where(
    seed: int, top_k: int, num_tokens: int, spread: float
) -> None:
    reading, projected = _project_random(seed, top_k=top_k, num_tokens=num_tokens, spread=spread)
    columns = projected.columns

    mass_N = np.exp(columns.support_logprobs_NK.astype(np.float64)).sum(axis=1) + np.exp(columns.log_tail_mass_N)
    np.testing.assert_allclose(mass_N, 1.0, atol=1e-5)
    assert columns.support_ids_NK.shape == (len(mass_N), top_k)
    assert not np.isnan(columns.support_logprobs_NK).any()
    assert 0.0 <= projected.unmapped_mass <= 1.0 + 1e-6
    # Statuses and rows say the same.
    assert (columns.status_T == PositionStatus.OK).sum() == len(mass_N) == len(projected.rows_N)
    assert len(columns.status_T) == len(reading.status_T)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 11), st.sampled_from([3.0, 60.0]))
def test_rows_descend_repeat_no_id_and_hold_the_students_token_unless_they_are_full(
    seed: int, top_k: int, spread: float
) -> None:
    reading, projected = _project_random(seed, top_k=top_k, num_tokens=9, spread=spread)
    columns = projected.columns
    sampled_N = reading.sampled_ids_N[np.isin(reading.rows_N, projected.rows_N)]
    for ids, logprobs, own, own_logprob in zip(
        columns.support_ids_NK, columns.support_logprobs_NK, sampled_N, columns.sampled_logprobs_N, strict=True
    ):
        real = ids[logprobs > -np.inf]
        assert (logprobs[1:] <= logprobs[:-1]).all()
        assert len(set(real.tolist())) == len(real) >= 1
        assert (ids[logprobs == -np.inf] == ids[0]).all()
        if own in real:
            assert logprobs[ids.tolist().index(own)] == own_logprob
        else:
            assert own_logprob == -np.inf or (len(real) == top_k and own_logprob <= logprobs[-1])


def one_to_one(order_V: np.ndarray, *, ends: tuple[int, ...] = (), end_class: tuple[int, ...] = ()) -> Alignment:
    return alignment_of(
        relation=VocabularyRelation.PERMUTED,
        projection_V=order_V,
        student_end_ids=ends,
        num_student_ids=len(order_V),
        end_class=end_class,
    )


def own_reading(ids_M: np.ndarray, sampled_M: np.ndarray) -> Reading:
    rows = np.arange(len(ids_M))
    return Reading(
        teacher_ids_M=ids_M,
        wanted_M=np.ones(len(ids_M), np.bool_),
        status_T=np.full(len(ids_M), PositionStatus.OK, np.uint8),
        rows_N=rows,
        path_ends_N=rows + 1,
        sampled_ids_N=sampled_M,
        conversions_N=np.zeros(len(ids_M), np.uint8),
    )


def test_permuted_ids_keep_every_bit() -> None:
    rng = np.random.default_rng(0)
    order_V = rng.permutation(V)
    ids_M = rng.integers(0, V, 15)
    reading = own_reading(ids_M, order_V[ids_M])
    columns = dense(reading, rng, top_k=6)

    projected = project(columns, reading, one_to_one(order_V), top_k=6, merges_end_tokens=True).columns

    np.testing.assert_array_equal(projected.support_ids_NK, order_V[columns.support_ids_NK])
    for name in ("support_logprobs_NK", "sampled_logprobs_N", "log_tail_mass_N", "entropies_N", "status_T"):
        np.testing.assert_array_equal(getattr(projected, name), getattr(columns, name))


def test_entropies_that_were_not_computed_stay_away() -> None:
    rng = np.random.default_rng(0)
    ids_M = rng.integers(0, V, 5)
    reading = own_reading(ids_M, ids_M)
    columns = replace(dense(reading, rng, top_k=6), entropies_N=None)
    projected = project(columns, reading, one_to_one(np.arange(V)), top_k=6, merges_end_tokens=True).columns
    assert projected.entropies_N is None
    assert len(projected.sampled_logprobs_N) == 5


def test_end_tokens_are_one_event_under_the_one_that_the_student_wrote() -> None:
    identity = np.arange(4)
    alignment = one_to_one(identity, ends=(1, 2), end_class=(1, 2, 3))
    logits = np.log(np.array([[0.2, 0.1, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]]))
    ids_M = np.array([2, 1, 0])
    reading = own_reading(ids_M, ids_M)
    columns = dense_columns(logits, ResponseToScore(ids_T=ids_M, score_mask_T=reading.wanted_M), top_k=4)

    merged = project(columns, reading, alignment, top_k=2, merges_end_tokens=True).columns
    by_itself = project(columns, reading, alignment, top_k=4, merges_end_tokens=False).columns

    np.testing.assert_array_equal(merged.support_ids_NK, [[2, 0], [1, 0], [1, 0]])
    np.testing.assert_allclose(np.exp(merged.support_logprobs_NK), [[0.8, 0.2]] * 3, rtol=1e-6)
    np.testing.assert_allclose(np.exp(merged.sampled_logprobs_N), [0.8, 0.8, 0.2], rtol=1e-6)
    np.testing.assert_allclose(np.exp(by_itself.sampled_logprobs_N), [0.3, 0.1, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(by_itself.support_ids_NK, [[3, 2, 0, 1]] * 3)


def test_mass_without_a_place_is_tail_and_is_reported() -> None:
    places = np.array([NO_PLACE, 0, 1, 1])
    alignment = alignment_of(relation=VocabularyRelation.OVERLAPPING, projection_V=places, num_student_ids=2)
    ids_M = np.array([1])
    reading = own_reading(ids_M, np.array([0]))
    logits = np.log(np.array([[0.5, 0.1, 0.15, 0.25]]))
    columns = dense_columns(logits, ResponseToScore(ids_T=ids_M, score_mask_T=reading.wanted_M), top_k=4)

    projected = project(columns, reading, alignment, top_k=3, merges_end_tokens=True)

    np.testing.assert_array_equal(projected.columns.support_ids_NK, [[1, 0, 1]])
    np.testing.assert_allclose(np.exp(projected.columns.support_logprobs_NK), [[0.4, 0.1, 0.0]], rtol=1e-6)
    assert math.exp(projected.columns.log_tail_mass_N[0]) == pytest.approx(0.5)
    assert projected.unmapped_mass == pytest.approx(0.5)


def test_a_row_of_which_nothing_has_a_place_is_unmapped() -> None:
    places = np.full(4, NO_PLACE)
    alignment = alignment_of(relation=VocabularyRelation.OVERLAPPING, projection_V=places, num_student_ids=2)
    reading = own_reading(np.array([1]), np.array([0]))
    never = np.log(np.array([[1.0, 0.0, 0.0, 0.0]]) + 1e-300)
    columns = dense_columns(never, ResponseToScore(ids_T=np.array([1]), score_mask_T=reading.wanted_M), top_k=2)
    impossible = ResponseColumns(
        status_T=columns.status_T,
        support_ids_NK=columns.support_ids_NK,
        support_logprobs_NK=columns.support_logprobs_NK,
        sampled_logprobs_N=np.array([-np.inf], np.float32),
        log_tail_mass_N=columns.log_tail_mass_N,
        entropies_N=columns.entropies_N,
    )

    projected = project(impossible, reading, alignment, top_k=2, merges_end_tokens=True).columns

    assert projected.status_T.tolist() == [PositionStatus.UNMAPPED]
    assert len(projected.sampled_logprobs_N) == 0


def test_nan_on_a_path_takes_the_position_and_no_other() -> None:
    rng = np.random.default_rng(3)
    reading = own_reading(rng.integers(0, V, 4), rng.integers(0, U, 4))
    reading = Reading(
        **{name: getattr(reading, name) for name in Reading.__slots__ if name != "path_ends_N"},
        path_ends_N=np.array([2, 3, 3, 4]),
    )
    columns = dense(reading, rng, top_k=4)
    broken = np.array([True, True, False, True])
    columns = ResponseColumns(
        status_T=np.where(broken, PositionStatus.OK, PositionStatus.NON_FINITE).astype(np.uint8),
        **{name: getattr(columns, name)[broken] for name in ARRAYS if name != "status_T"},
    )

    projected = project(columns, reading, random_alignment(rng), top_k=2, merges_end_tokens=True).columns

    non_finite = PositionStatus.NON_FINITE
    assert projected.status_T.tolist() == [PositionStatus.OK, non_finite, non_finite, PositionStatus.OK]


def test_strangers_are_asked_for_twice_as_many_tokens_and_kin_for_one_more_per_end() -> None:
    rng = np.random.default_rng(0)
    assert num_teacher_tokens(random_alignment(rng), top_k=5, merges_end_tokens=True) == 10
    kin = one_to_one(np.arange(6), ends=(1,), end_class=(1, 4))
    assert num_teacher_tokens(kin, top_k=5, merges_end_tokens=True) == 7
    assert num_teacher_tokens(kin, top_k=5, merges_end_tokens=False) == 5
