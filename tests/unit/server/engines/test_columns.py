from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from preceptor_server.engines.columns import CPU_BLOCK_ROWS, TILE, ChunkColumns, columns_of, top_k_ids
from preceptor_server.types import ResponseColumns

from tests.engines.fake import dense_columns
from tests.unit.server.groups import response_of

# R = rows of the chunk, V = vocabulary size, K = support size

INF = np.inf
FLOAT32_NATS = 2e-5
"""Sums over up to 49,152 terms in fp32, logits up to 40: a few units in the last place of what is summed."""

Floats = npt.NDArray[np.float32]


def run_columns(
    logits_RV: Floats | torch.Tensor,
    *,
    sampled: list[int] | None = None,
    temperatures: list[float] | None = None,
    top_ks: list[int],
    candidates: list[list[int]] | None = None,
) -> ChunkColumns:
    logits = logits_RV if isinstance(logits_RV, torch.Tensor) else torch.from_numpy(logits_RV.copy())
    num_rows = len(logits)
    named = [(row, token) for row, ids in enumerate(candidates or []) for token in ids]
    return columns_of(
        logits,
        sampled_ids_R=torch.tensor(sampled or [0] * num_rows),
        temperatures_R=torch.tensor(temperatures or [1.0] * num_rows),
        top_ks_R=torch.tensor(top_ks),
        max_top_k=max(top_ks),
        candidate_rows_E=torch.tensor([row for row, _ in named]) if named else None,
        candidate_ids_E=torch.tensor([token for _, token in named]) if named else None,
    )


def oracle(logits_V: Floats, *, sampled: int, temperature: float, top_k: int) -> ResponseColumns:
    """One row by definition, in float64. Divided in fp32, as a tie of quotients is a tie for the caller too."""
    scaled_V = logits_V / np.float32(temperature)
    return dense_columns(scaled_V.astype(np.float64)[None], response_of([sampled]), top_k=top_k)


def assert_equals_oracle(
    logits_RV: Floats, *, sampled: list[int], temperatures: list[float], top_ks: list[int], atol: float = FLOAT32_NATS
) -> None:
    columns = run_columns(logits_RV, sampled=sampled, temperatures=temperatures, top_ks=top_ks)
    for r, k in enumerate(top_ks):
        expected = oracle(logits_RV[r], sampled=sampled[r], temperature=temperatures[r], top_k=k)
        assert columns.is_finite_R[r]
        assert expected.entropies_N is not None
        np.testing.assert_array_equal(columns.support_ids_RK[r, :k].numpy(), expected.support_ids_NK[0])
        np.testing.assert_allclose(
            columns.support_logprobs_RK[r, :k].numpy(), expected.support_logprobs_NK[0], atol=atol, rtol=1e-6
        )
        np.testing.assert_allclose(
            columns.sampled_logprobs_R[r].numpy(), expected.sampled_logprobs_N[0], atol=atol, rtol=1e-6
        )
        np.testing.assert_allclose(columns.entropies_R[r].numpy(), expected.entropies_N[0], atol=atol, rtol=1e-5)
        np.testing.assert_allclose(
            columns.log_tail_mass_R[r].numpy(), expected.log_tail_mass_N[0], atol=atol, rtol=1e-5
        )


def random_logits(seed: int, num_rows: int, vocabulary_size: int, *, spread: float = 5.0) -> Floats:
    logits: Floats = np.random.default_rng(seed).normal(0, spread, (num_rows, vocabulary_size)).astype(np.float32)
    return logits


def test_oracle_agrees_with_a_vocabulary_of_three_worked_by_hand() -> None:
    # Weights 1 : 2 : 5 of a sum of 8; the second token comes with mask 0 and has no row.
    logits_TV = np.log([[1.0, 5.0, 2.0], [9.0, 9.0, 9.0], [2.0, 2.0, 4.0]])
    columns = dense_columns(logits_TV, response_of([2, 0, 1], [1, 0, 1]), top_k=2)
    assert columns.status_T.tolist() == [1, 2, 1]
    assert columns.support_ids_NK.tolist() == [[1, 2], [2, 0]]
    np.testing.assert_allclose(columns.support_logprobs_NK, np.log([[5 / 8, 2 / 8], [4 / 8, 2 / 8]]), rtol=1e-6)
    np.testing.assert_allclose(columns.sampled_logprobs_N, np.log([2 / 8, 2 / 8]), rtol=1e-6)
    np.testing.assert_allclose(columns.log_tail_mass_N, np.log([1 / 8, 2 / 8]), rtol=1e-6)
    # -(1/8 ln 1/8 + 5/8 ln 5/8 + 1/4 ln 1/4) and -(2 * 1/4 ln 1/4 + 1/2 ln 1/2)
    assert columns.entropies_N is not None
    np.testing.assert_allclose(columns.entropies_N, [0.9002560, 1.0397208], rtol=1e-6)


def test_columns_agree_with_a_vocabulary_of_three_worked_by_hand() -> None:
    logits = np.log(np.array([[1.0, 5.0, 2.0]], np.float32))
    columns = run_columns(logits, sampled=[2], top_ks=[2])
    assert columns.support_ids_RK.tolist() == [[1, 2]]
    np.testing.assert_allclose(columns.support_logprobs_RK.numpy(), np.log([[5 / 8, 2 / 8]]), rtol=1e-6)
    np.testing.assert_allclose(columns.sampled_logprobs_R.numpy(), np.log([2 / 8]), rtol=1e-6)
    np.testing.assert_allclose(columns.log_tail_mass_R.numpy(), np.log([1 / 8]), rtol=1e-6)
    np.testing.assert_allclose(columns.entropies_R.numpy(), [0.9002560], rtol=1e-6)


@pytest.mark.parametrize(
    ("vocabulary_size", "top_k"),
    [
        (2, 1),
        (3, 3),
        (TILE - 1, 5),
        (TILE, 1),
        (TILE + 1, 1),
        (2 * TILE + 1, 2),
        (1000, 1),
        (1000, 4),
        (1000, 15),
        (1000, 16),
        (1000, 1000),
        (50_257, 33),
        (49_152, 1),
        (49_152, 64),
        (49_152, 1024),
    ],
)
def test_random_rows_equal_the_oracle(vocabulary_size: int, top_k: int) -> None:
    num_rows = 5
    rng = np.random.default_rng(vocabulary_size + top_k)
    assert_equals_oracle(
        random_logits(top_k, num_rows, vocabulary_size),
        sampled=rng.integers(0, vocabulary_size, num_rows).tolist(),
        temperatures=[1.0] * num_rows,
        top_ks=[top_k] * num_rows,
    )


@pytest.mark.parametrize("vocabulary_size", [40, 2 * TILE + 7, 1000])
def test_rows_of_one_chunk_keep_their_own_support_size_and_temperature(vocabulary_size: int) -> None:
    assert_equals_oracle(
        random_logits(3, 6, vocabulary_size),
        sampled=[0, 1, 2, 3, 4, vocabulary_size - 1],
        temperatures=[1.0, 0.5, 2.0, 1.0, 0.7, 5.0],
        top_ks=[1, 4, 2, 33, 40, 7],
    )


@pytest.mark.parametrize("num_levels", [1, 2, 3, 7])
@pytest.mark.parametrize("vocabulary_size", [50, 2 * TILE, 129, 1000])
@pytest.mark.parametrize("top_k", [1, 2, 13, 50])
def test_tied_logits_are_ordered_by_ascending_id(num_levels: int, vocabulary_size: int, top_k: int) -> None:
    rng = np.random.default_rng(num_levels * vocabulary_size)
    logits = rng.integers(0, num_levels, (4, vocabulary_size)).astype(np.float32) - 1
    assert_equals_oracle(
        logits, sampled=[0, 1, 2, 3], temperatures=[1.0, 1.0, 0.5, 2.0], top_ks=[top_k] * 4
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_minus_zero_ties_with_zero(temperature: float) -> None:
    logits = np.array([[-0.0, 0.0, -0.0, 0.0, -1.0]], np.float32)
    columns = run_columns(logits, temperatures=[temperature], top_ks=[4])
    assert columns.support_ids_RK.tolist() == [[0, 1, 2, 3]]


def test_row_of_equal_logits_is_uniform() -> None:
    columns = run_columns(np.full((1, 200), 7.5, np.float32), sampled=[150], top_ks=[3])
    assert columns.support_ids_RK.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(columns.support_logprobs_RK.numpy(), np.full((1, 3), -np.log(200)), rtol=1e-6)
    np.testing.assert_allclose(columns.sampled_logprobs_R.numpy(), [-np.log(200)], rtol=1e-6)
    np.testing.assert_allclose(columns.entropies_R.numpy(), [np.log(200)], rtol=1e-6)
    np.testing.assert_allclose(columns.log_tail_mass_R.numpy(), [np.log(197 / 200)], rtol=1e-4)


def test_impossible_tokens_have_no_mass_and_come_last_by_ascending_id() -> None:
    logits = np.full((1, 100), -INF, np.float32)
    logits[0, [70, 5]] = np.log([3.0, 1.0])
    columns = run_columns(logits, sampled=[9], top_ks=[4])
    assert columns.is_finite_R.tolist() == [True]
    assert columns.support_ids_RK.tolist() == [[70, 5, 0, 1]]
    np.testing.assert_allclose(
        columns.support_logprobs_RK.numpy(), [[np.log(0.75), np.log(0.25), -INF, -INF]], rtol=1e-6
    )
    assert columns.sampled_logprobs_R.tolist() == [-INF]
    assert columns.log_tail_mass_R.tolist() == [-INF]
    np.testing.assert_allclose(columns.entropies_R.numpy(), [0.5623351], rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 70])
def test_token_that_is_certain_leaves_no_tail_and_no_entropy(top_k: int) -> None:
    logits = np.full((1, 5000), -INF, np.float32)
    logits[0, 4321] = 3.0
    columns = run_columns(logits, sampled=[4321], top_ks=[top_k])
    assert columns.support_ids_RK[0, 0] == 4321
    assert columns.support_ids_RK[0, 1:].tolist() == list(range(top_k - 1))
    assert columns.support_logprobs_RK[0, 0] == 0
    assert columns.sampled_logprobs_R.tolist() == [0]
    assert columns.log_tail_mass_R.tolist() == [-INF]
    assert columns.entropies_R.tolist() == [0]


def test_logprob_far_below_what_exp_can_hold_stays_exact() -> None:
    columns = run_columns(np.array([[0.0, -500.0, -1e30]], np.float32), sampled=[2], top_ks=[2])
    assert columns.support_logprobs_RK.tolist() == [[0.0, -500.0]]
    np.testing.assert_allclose(columns.sampled_logprobs_R.numpy(), [-1e30], rtol=1e-6)


def test_support_of_the_whole_vocabulary_leaves_no_tail() -> None:
    columns = run_columns(random_logits(0, 3, 80), top_ks=[80, 80, 80])
    assert columns.log_tail_mass_R.tolist() == [-INF] * 3


@pytest.mark.parametrize("vocabulary_size", [300, 49_152])
def test_tail_of_a_millionth_of_a_millionth_keeps_its_precision(vocabulary_size: int) -> None:
    logits = np.full((1, vocabulary_size), np.log(1e-12 / (vocabulary_size - 2)), np.float32)
    logits[0, [17, 3]] = 0.0
    columns = run_columns(logits, top_ks=[2])
    assert columns.support_ids_RK.tolist() == [[3, 17]]
    # By hand: 1e-12 of a total of 2. A logit near -38 is itself rounded to 2e-6, and the sum in fp32 adds as much.
    assert columns.log_tail_mass_R.item() == pytest.approx(np.log(0.5e-12), abs=1e-5)


@pytest.mark.parametrize("top_ks", [[1, 1, 1, 1], [3, 50, 20, 1], [200, 1, 199, 64]])
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_support_and_tail_hold_all_mass(top_ks: list[int], spread: float) -> None:
    columns = run_columns(random_logits(5, 4, 200, spread=spread), top_ks=top_ks)
    for r, k in enumerate(top_ks):
        support = columns.support_logprobs_RK[r, :k].double().exp().sum()
        assert (support + columns.log_tail_mass_R[r].double().exp()).item() == pytest.approx(1, abs=1e-6)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.from_numpy(random_logits(8, 4, 3000)).bfloat16()
    columns = run_columns(logits, sampled=[0, 7, 8, 9], top_ks=[16] * 4)
    exact = logits.float().numpy()
    for r, sampled in enumerate([0, 7, 8, 9]):
        expected = oracle(exact[r], sampled=sampled, temperature=1.0, top_k=16)
        np.testing.assert_array_equal(columns.support_ids_RK[r].numpy(), expected.support_ids_NK[0])
        np.testing.assert_allclose(
            columns.support_logprobs_RK[r].numpy(), expected.support_logprobs_NK[0], atol=FLOAT32_NATS
        )
        assert columns.log_tail_mass_R[r].item() == pytest.approx(expected.log_tail_mass_N[0], abs=FLOAT32_NATS)


@pytest.mark.parametrize("vocabulary_size", [40, 2 * TILE + 7, 5000])
def test_candidates_equal_a_dense_log_softmax_and_the_support_to_the_bit(vocabulary_size: int) -> None:
    rng = np.random.default_rng(vocabulary_size)
    logits, temperatures, top_ks = random_logits(9, 4, vocabulary_size), [1.0, 0.5, 2.0, 0.7], [3, 1, 17, 40]
    # None, one, more than the support holds, and the support itself with its best twice and the least likely of all.
    best = np.argsort(-logits, axis=1, kind="stable")
    candidates = [[], [int(best[1, 7])], rng.integers(0, vocabulary_size, 30).tolist(), best[3, [0, 0, *range(40), -1]]]
    named = [[int(token) for token in ids] for ids in candidates]
    columns = run_columns(logits, temperatures=temperatures, top_ks=top_ks, candidates=named)
    assert columns.candidate_logprobs_E is not None
    actual = iter(columns.candidate_logprobs_E.tolist())
    for r, ids in enumerate(named):
        scaled_V = (logits[r] / np.float32(temperatures[r])).astype(np.float64)
        logprobs_V = scaled_V - np.logaddexp.reduce(scaled_V)
        for token in ids:
            logprob = next(actual)
            assert logprob == pytest.approx(logprobs_V[token], abs=FLOAT32_NATS, rel=1e-6)
            for at in np.flatnonzero(columns.support_ids_RK[r].numpy() == token):
                assert logprob == columns.support_logprobs_RK[r, at].item()
    assert next(actual, None) is None


@pytest.mark.parametrize("num_rows", [CPU_BLOCK_ROWS - 1, CPU_BLOCK_ROWS, CPU_BLOCK_ROWS + 1, 3 * CPU_BLOCK_ROWS + 5])
def test_rows_beyond_one_block_keep_their_own_candidates(num_rows: int) -> None:
    rng = np.random.default_rng(num_rows)
    logits_RV = random_logits(num_rows, num_rows, 500)
    # From none to seven per row, none at all in the second block's first rows.
    candidates = [rng.integers(0, 500, 0 if 30 <= row < 36 else rng.integers(0, 8)).tolist() for row in range(num_rows)]
    top_ks, temperatures = rng.integers(1, 9, num_rows).tolist(), rng.uniform(0.5, 2, num_rows).tolist()
    columns = run_columns(logits_RV, temperatures=temperatures, top_ks=top_ks, candidates=candidates)
    scaled_RV = (logits_RV / np.array(temperatures, np.float32)[:, None]).astype(np.float64)
    dense_RV = scaled_RV - np.logaddexp.reduce(scaled_RV, axis=1)[:, None]
    expected_E = [dense_RV[row, token] for row, ids in enumerate(candidates) for token in ids]
    assert columns.candidate_logprobs_E is not None
    np.testing.assert_allclose(columns.candidate_logprobs_E.numpy(), expected_E, atol=FLOAT32_NATS)
    order_RV = np.argsort(-logits_RV, axis=1, kind="stable")
    for row, top_k in enumerate(top_ks):
        np.testing.assert_array_equal(columns.support_ids_RK[row, :top_k].numpy(), order_RV[row, :top_k])


def test_tied_candidates_have_one_logprob_inside_the_support_and_outside() -> None:
    columns = run_columns(np.zeros((1, 100), np.float32), top_ks=[2], candidates=[[0, 1, 2, 99, 99]])
    assert columns.candidate_logprobs_E is not None
    assert columns.candidate_logprobs_E.tolist() == [columns.support_logprobs_RK[0, 0].item()] * 5


def test_candidate_that_is_impossible_or_beyond_what_exp_can_hold_keeps_its_logprob() -> None:
    logits = np.array([[0.0, -500.0, -INF, -1e30]], np.float32)
    columns = run_columns(logits, top_ks=[1], candidates=[[0, 1, 2, 3]])
    assert columns.candidate_logprobs_E is not None
    np.testing.assert_allclose(columns.candidate_logprobs_E.numpy(), [0.0, -500.0, -INF, -1e30], rtol=1e-6)


def test_no_other_column_changes_a_bit_where_candidates_are_named() -> None:
    logits = random_logits(6, 3, 300)
    without = run_columns(logits, top_ks=[2, 9, 4])
    columns = run_columns(logits, top_ks=[2, 9, 4], candidates=[[5], [], [1, 2]])
    assert without.candidate_logprobs_E is None
    for name in ChunkColumns.__dataclass_fields__:
        if name != "candidate_logprobs_E":
            assert torch.equal(getattr(columns, name), getattr(without, name)), name


def test_row_that_is_not_finite_leaves_its_neighbours_candidates_alone() -> None:
    clean = random_logits(4, 3, 200)
    dirty = clean.copy()
    dirty[1, 7] = np.nan
    named = [[7, 3], [7], [7]]
    expected = run_columns(clean, top_ks=[8, 8, 8], candidates=named).candidate_logprobs_E
    actual = run_columns(dirty, top_ks=[8, 8, 8], candidates=named).candidate_logprobs_E
    assert expected is not None
    assert actual is not None
    assert actual[[0, 1, 3]].tolist() == expected[[0, 1, 3]].tolist()


def test_callers_logits_are_left_alone() -> None:
    logits = torch.from_numpy(random_logits(2, 3, 100))
    before = logits.clone()
    run_columns(logits, top_ks=[5, 5, 5])
    assert torch.equal(logits, before)


NEGATIVE_NAN = np.uint32(0xFFC00000).view(np.float32)
"""What x86 makes of 0/0; in the order of bits it comes below -inf."""


@pytest.mark.parametrize("bad", [np.nan, NEGATIVE_NAN, INF], ids=["nan", "negative nan", "inf"])
@pytest.mark.parametrize("where", [slice(0, 1), slice(500, 501), slice(0, 513), slice(0, None), slice(1, None)])
@pytest.mark.parametrize("vocabulary_size", [100, 513, 1000])
def test_row_that_is_not_finite_is_flagged_and_its_neighbours_stay_right(
    bad: float, where: slice, vocabulary_size: int
) -> None:
    clean = random_logits(4, 3, vocabulary_size)
    dirty = clean.copy()
    dirty[1, where if where.start < vocabulary_size else slice(-1, None)] = bad
    columns = run_columns(dirty, top_ks=[8, 8, 8])
    expected = run_columns(clean, top_ks=[8, 8, 8])
    assert columns.is_finite_R.tolist() == [True, False, True]
    for name in ("support_ids_RK", "support_logprobs_RK", "sampled_logprobs_R", "log_tail_mass_R", "entropies_R"):
        for r in (0, 2):
            assert torch.equal(getattr(columns, name)[r], getattr(expected, name)[r]), name


def test_row_whose_best_tiles_hold_nothing_but_negative_nans_and_padding_is_flagged() -> None:
    logits = random_logits(4, 3, 2 * TILE + 1)
    logits[1, :TILE] = NEGATIVE_NAN
    logits[1, -1] = NEGATIVE_NAN
    columns = run_columns(logits, top_ks=[2, 2, 2])
    assert columns.is_finite_R.tolist() == [True, False, True]


def test_row_without_any_possible_token_is_flagged() -> None:
    logits = random_logits(4, 2, 100)
    logits[0] = -INF
    assert run_columns(logits, top_ks=[3, 3]).is_finite_R.tolist() == [False, True]


@pytest.mark.parametrize("k", [1, 2, 8, 63, 64, 100])
@pytest.mark.parametrize("vocabulary_size", [100, 128, 6401, 8192])
@pytest.mark.parametrize("num_levels", [4, 1000, 10**9])
def test_top_k_ids_equal_a_stable_sort(k: int, vocabulary_size: int, num_levels: int) -> None:
    rng = np.random.default_rng(k + vocabulary_size)
    values = (rng.integers(-num_levels, num_levels, (6, vocabulary_size)) / 7).astype(np.float32) + np.float32(0)
    values[3, rng.random(vocabulary_size) < 0.9] = -INF
    values[4] = np.sort(values[4])
    values[5] = np.sort(values[5])[::-1]
    expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top_k_ids(torch.from_numpy(values), k).numpy(), expected)


def test_top_k_ids_tell_neighbouring_floats_apart() -> None:
    start = np.float32(-3.0)
    values = [start]
    for _ in range(299):
        values.append(np.nextafter(values[-1], np.float32(1)))
    shuffled = np.random.default_rng(0).permutation(300)
    row = np.array(values, np.float32)[shuffled][None]
    expected = np.argsort(-row.astype(np.float64), axis=1)[:, :4]
    np.testing.assert_array_equal(top_k_ids(torch.from_numpy(row), 4).numpy(), expected)
