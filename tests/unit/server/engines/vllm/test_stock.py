from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from preceptor_server.engines.vllm.stock import columns_of_response, token_ids_of
from preceptor_server.types import ResponseToScore, ScoreGroup

from tests.unit.server.engines.vllm.worker import VOCABULARY_SIZE, fake_engine
from tests.unit.server.groups import group_of, random_batch, response_of

# L = positions of an answer, V = vocabulary size


@dataclass
class Flat:
    """vLLM's FlatLogprobs, as far as we read it."""

    start_indices: list[int] = field(default_factory=list)
    end_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def flat_of(logprobs_LV: npt.NDArray[np.float64], token_ids: npt.NDArray[np.int64], top_k: int) -> Flat:
    """Position 0 has none; position i holds the token itself, then the K likeliest, ties by DESCENDING id."""
    flat = Flat(start_indices=[0], end_indices=[0])
    for position in range(1, len(token_ids)):
        row = logprobs_LV[position - 1]
        best = np.lexsort((-np.arange(len(row)), -row))[:top_k]
        ids = [int(token_ids[position]), *best.tolist()]
        flat.start_indices.append(len(flat.token_ids))
        flat.token_ids += ids
        flat.logprobs += row[ids].tolist()
        flat.end_indices.append(len(flat.token_ids))
    return flat


def dicts_of(flat: Flat) -> list[dict[int, SimpleNamespace] | None]:
    """The same, as vLLM answers it without flat lists."""
    dicts: list[dict[int, SimpleNamespace] | None] = [None]
    for start, stop in zip(flat.start_indices[1:], flat.end_indices[1:], strict=True):
        ids, logprobs = flat.token_ids[start:stop], flat.logprobs[start:stop]
        ranks = [10_000, *range(1, stop - start)]
        entries = zip(ids, ranks, logprobs, strict=True)
        dicts.append({i: SimpleNamespace(logprob=logprob, rank=rank) for i, rank, logprob in entries})
    return dicts


def answer(group: ScoreGroup, response: ResponseToScore) -> Flat:
    ids = token_ids_of(group, response)
    logprobs_LV = asyncio.run(fake_engine().reference_logprobs(ids)).astype(np.float64)
    return flat_of(logprobs_LV, ids, group.top_k)


@pytest.mark.parametrize("is_flat", [True, False])
def test_columns_are_those_of_a_dense_computation(is_flat: bool) -> None:
    rng = np.random.default_rng(3)
    groups = [
        group_of(group.prompt_ids_P, *group.responses, top_k=group.top_k)
        for _ in range(10)
        for group in random_batch(rng, vocabulary_size=VOCABULARY_SIZE)
    ]
    expected = asyncio.run(fake_engine().score(groups))
    for group, columns in zip(groups, expected, strict=True):
        for response, other in zip(group.responses, columns, strict=True):
            flat = answer(group, response)
            ours = columns_of_response(group, response, flat if is_flat else dicts_of(flat))
            np.testing.assert_array_equal(ours.status_T, other.status_T)
            np.testing.assert_array_equal(ours.support_ids_NK, other.support_ids_NK)
            np.testing.assert_allclose(ours.support_logprobs_NK, other.support_logprobs_NK, atol=1e-6)
            np.testing.assert_allclose(ours.sampled_logprobs_N, other.sampled_logprobs_N, atol=1e-6)
            # The rest of 1 after K fp32 logprobs: exact to 1e-6 of mass, whatever its logarithm.
            np.testing.assert_allclose(np.exp(ours.log_tail_mass_N), np.exp(other.log_tail_mass_N), atol=1e-6)
            assert ours.entropies_N is None


def test_equal_logprobs_come_by_ascending_id() -> None:
    group = group_of([1], [2], top_k=2)
    flat = flat_of(np.log(np.array([[0.2, 0.3, 0.3, 0.2]])), np.array([1, 2]), top_k=2)
    assert flat.token_ids == [2, 2, 1]
    ours = columns_of_response(group, group.responses[0], flat)
    assert ours.support_ids_NK.tolist() == [[1, 2]]
    np.testing.assert_allclose(np.exp(ours.log_tail_mass_N), [0.4], atol=1e-6)


def test_a_support_that_holds_everything_has_no_tail() -> None:
    group = group_of([1], [0], top_k=2)
    flat = flat_of(np.log(np.array([[0.25, 0.75]])), np.array([1, 0]), top_k=2)
    assert columns_of_response(group, group.responses[0], flat).log_tail_mass_N.tolist() == [-np.inf]


def test_a_position_that_is_not_a_number_has_a_status_and_no_row() -> None:
    group = group_of([1], [0, 1], top_k=2)
    flat = flat_of(np.log(np.array([[0.25, 0.75], [0.5, 0.5]])), np.array([1, 0, 1]), top_k=2)
    flat.logprobs[:3] = [float("nan")] * 3
    ours = columns_of_response(group, group.responses[0], flat)
    assert ours.status_T.tolist() == [3, 1]
    assert len(ours.sampled_logprobs_N) == 1


def test_tokens_after_the_last_scored_one_are_not_sent() -> None:
    group = group_of([1, 2], response_of([3, 4, 5], [0, 1, 0]))
    assert token_ids_of(group, group.responses[0]).tolist() == [1, 2, 3, 4]
