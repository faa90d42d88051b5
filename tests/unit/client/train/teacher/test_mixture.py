from __future__ import annotations

# N = scored positions, K = support size, C = candidates per position, V = vocabulary, M = teachers
import numpy as np
import numpy.typing as npt
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.train.teacher.mixture import at_common_positions, ids_to_ask_about, mixed, rows_of
from preceptor_client.types import ResponseScores

V, K, T = 50, 6, 9
_Float = npt.NDArray[np.float64]


def distributions(seed: int) -> _Float:
    logits_TV = np.random.default_rng(seed).normal(size=(T, V)) * 3
    logits_TV[2, 7] = -np.inf  # a token that this teacher cannot write
    logprobs: _Float = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return logprobs


SAMPLED_T = np.arange(T) * 5 % V
STUDENT_IDS_TC = np.random.default_rng(5).integers(0, V, size=(T, 3))


def answer(
    logprobs_TV: _Float, positions: list[int], *, candidate_ids_TC: npt.NDArray[np.int64] | None = None
) -> ResponseScores:
    """As a server gives it, in float32."""
    positions_N = np.array(positions)
    status_T = np.full(T, PositionStatus.MISALIGNED, np.uint8)
    status_T[positions_N] = PositionStatus.OK
    rows_NV = logprobs_TV[positions_N]
    ids_NK = np.argsort(-rows_NV, axis=1, kind="stable")[:, :K]
    support_NK = np.take_along_axis(rows_NV, ids_NK, axis=1)
    candidate_ids_NC = None if candidate_ids_TC is None else candidate_ids_TC[positions_N]
    with np.errstate(divide="ignore"):
        tail_N = np.log1p(-np.exp(support_NK).sum(axis=1))
    return ResponseScores(
        status_T=status_T,
        positions_N=positions_N,
        support_ids_NK=ids_NK,
        support_logprobs_NK=support_NK.astype(np.float32),
        sampled_logprobs_N=rows_NV[np.arange(len(positions)), SAMPLED_T[positions_N]].astype(np.float32),
        log_tail_mass_N=tail_N.astype(np.float32),
        entropies_N=-(np.exp(rows_NV) * np.where(np.isneginf(rows_NV), 0, rows_NV)).sum(axis=1).astype(np.float32),
        candidate_ids_NC=candidate_ids_NC,
        candidate_logprobs_NC=None
        if candidate_ids_NC is None
        else np.take_along_axis(rows_NV, candidate_ids_NC, axis=1).astype(np.float32),
    )


@pytest.mark.parametrize("student_ids_TC", [None, STUDENT_IDS_TC])
def test_mixture_is_that_of_the_dense_distributions(student_ids_TC: npt.NDArray[np.int64] | None) -> None:
    a_TV, b_TV, c_TV = (distributions(seed) for seed in (1, 2, 3))
    first = answer(a_TV, [0, 2, 3, 5, 8], candidate_ids_TC=student_ids_TC)
    asked_TC = ids_to_ask_about(first, student_ids_TC=student_ids_TC)
    second = answer(b_TV, [0, 1, 2, 5, 8], candidate_ids_TC=asked_TC)
    third = answer(c_TV, [0, 2, 4, 5, 7, 8], candidate_ids_TC=asked_TC)
    common = [0, 2, 5, 8]
    shares_MN = np.random.default_rng(4).dirichlet(np.ones(3), size=4).T

    ours = at_common_positions([first, second, third])
    mixture = mixed(ours[0], ours[1:], shares_MN=shares_MN)

    dense_NV = np.zeros((4, V))
    for share_N, logprobs_TV in zip(shares_MN, (a_TV, b_TV, c_TV), strict=True):
        dense_NV += share_N[:, None] * np.exp(logprobs_TV[common])
    with np.errstate(divide="ignore"):
        dense_NV = np.log(dense_NV)  # one token is impossible for all three
    assert mixture.positions_N.tolist() == common
    expected_NK = np.take_along_axis(dense_NV, mixture.support_ids_NK, axis=1)
    np.testing.assert_allclose(mixture.support_logprobs_NK, expected_NK, atol=1e-5)
    assert (np.diff(mixture.support_logprobs_NK, axis=1) <= 0).all()
    assert all(
        set(row) == set(before) for row, before in zip(mixture.support_ids_NK, ours[0].support_ids_NK, strict=True)
    )
    np.testing.assert_allclose(
        mixture.sampled_logprobs_N, dense_NV[np.arange(4), SAMPLED_T[common]], atol=1e-5, rtol=1e-5
    )
    np.testing.assert_allclose(np.exp(mixture.log_tail_mass_N), 1 - np.exp(expected_NK).sum(axis=1), atol=1e-6)
    assert mixture.entropies_N is None
    if student_ids_TC is not None:
        expected_NC = np.take_along_axis(dense_NV, student_ids_TC[common], axis=1)
        assert mixture.candidate_logprobs_NC is not None
        np.testing.assert_allclose(mixture.candidate_logprobs_NC, expected_NC, atol=1e-5)


def test_one_teacher_with_the_whole_share_is_the_mixture() -> None:
    first = answer(distributions(1), [0, 2, 3])
    second = answer(distributions(2), [0, 2, 3], candidate_ids_TC=ids_to_ask_about(first, student_ids_TC=None))
    mixture = mixed(first, [second], shares_MN=np.array([[1.0] * 3, [0.0] * 3]))
    np.testing.assert_allclose(mixture.support_logprobs_NK, first.support_logprobs_NK, atol=1e-6)
    np.testing.assert_allclose(mixture.log_tail_mass_N, first.log_tail_mass_N, atol=1e-5)


def test_what_fills_up_a_row_stays_outside_the_support() -> None:
    first = answer(distributions(1), [0, 1])
    short_NK = first.support_logprobs_NK.copy()
    short_NK[0, 4:] = -np.inf
    first = rows_of(first, np.arange(2))
    object.__setattr__(first, "support_logprobs_NK", short_NK)
    second = answer(distributions(2), [0, 1], candidate_ids_TC=ids_to_ask_about(first, student_ids_TC=None))
    mixture = mixed(first, [second], shares_MN=np.full((2, 2), 0.5))
    assert np.isneginf(mixture.support_logprobs_NK[0]).sum() == 2
    assert np.isfinite(mixture.support_logprobs_NK[1]).all()


def test_an_answer_without_the_ids_that_were_asked_for_is_refused() -> None:
    first = answer(distributions(1), [0, 1])
    with pytest.raises(CorruptAnswerError, match="6 ids per position"):
        mixed(first, [answer(distributions(2), [0, 1])], shares_MN=np.full((2, 2), 0.5))
