from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from preceptor_server.engines.vllm.fast import columns_of_group, plan
from preceptor_server.engines.vllm.rows import MISSING
from preceptor_server.types import GroupColumns, ScoreGroup

from tests.unit.server.candidate_groups import assert_all_agree_with_support, with_candidates
from tests.unit.server.engines.vllm.worker import VOCABULARY_SIZE, answer, fake_engine
from tests.unit.server.groups import group_of, random_batch, response_of


def score(group: ScoreGroup) -> GroupColumns:
    planned = plan(group)
    return columns_of_group(group, planned, [answer(request) for request in planned.requests])


def random_groups(seed: int) -> list[ScoreGroup]:
    rng = np.random.default_rng(seed)
    batches = [random_batch(rng, vocabulary_size=VOCABULARY_SIZE) for _ in range(12)]
    return [group for batch in batches for group in with_candidates(batch, rng, vocabulary_size=VOCABULARY_SIZE)]


def assert_equal(ours: GroupColumns, expected: GroupColumns) -> None:
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(one.status_T, other.status_T)
        np.testing.assert_array_equal(one.support_ids_NK, other.support_ids_NK)
        # Two roundings to fp32 instead of one.
        np.testing.assert_allclose(one.support_logprobs_NK, other.support_logprobs_NK, atol=2e-6)
        np.testing.assert_allclose(one.sampled_logprobs_N, other.sampled_logprobs_N, atol=2e-6)
        np.testing.assert_allclose(one.log_tail_mass_N, other.log_tail_mass_N, atol=2e-5)
        assert one.entropies_N is not None
        assert other.entropies_N is not None
        np.testing.assert_allclose(one.entropies_N, other.entropies_N, atol=2e-6)
        assert (one.candidate_logprobs_NC is None) == (other.candidate_logprobs_NC is None)
        if one.candidate_logprobs_NC is not None and other.candidate_logprobs_NC is not None:
            np.testing.assert_allclose(one.candidate_logprobs_NC, other.candidate_logprobs_NC, atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_columns_of_random_groups_are_those_of_a_dense_computation(seed: int) -> None:
    groups = random_groups(seed)
    expected = asyncio.run(fake_engine().score(groups))
    ours = [score(group) for group in groups]
    for one, other in zip(ours, expected, strict=True):
        assert_equal(one, other)
    assert_all_agree_with_support(groups, ours)


def test_siblings_leave_the_prompts_last_row_to_the_first_and_may_take_the_whole_prompt_from_the_cache() -> None:
    planned = plan(group_of([7, 8, 9], [1, 2], [3, 4, 5], [6, 7]))
    first, second, third = planned.requests
    assert first.question.positions_R.tolist() == [2, 3]
    assert first.question.cache_limit == 2
    assert second.question.positions_R.tolist() == [3, 4]
    assert second.question.cache_limit == third.question.cache_limit == 3
    # The last token of a response predicts nothing.
    assert [request.token_ids.tolist() for request in planned.requests] == [[7, 8, 9, 1], [7, 8, 9, 3, 4], [7, 8, 9, 6]]


def test_a_sibling_of_one_token_costs_no_request() -> None:
    group = group_of([7, 8], [1], [2], [3, 4])
    assert [len(request.token_ids) for request in plan(group).requests] == [2, 3]
    assert_equal(score(group), asyncio.run(fake_engine().score([group]))[0])


def test_the_cache_never_reaches_into_a_response_whose_beginning_is_not_scored() -> None:
    group = group_of([7, 8], response_of([1, 2, 3, 4], [0, 0, 1, 0]), response_of([1, 2, 3], [0, 0, 1]))
    planned = plan(group)
    assert [request.question.cache_limit for request in planned.requests] == [2, 2]
    assert [len(request.token_ids) for request in planned.requests] == [4, 4]
    assert_equal(score(group), asyncio.run(fake_engine().score([group]))[0])


def test_rows_that_the_cache_swallowed_say_so() -> None:
    request = plan(group_of([7, 8, 9], [1, 2, 3])).requests[0]
    assert (answer(request, num_cached=4).states_R == MISSING).tolist() == [True, True, False]


@pytest.mark.parametrize("width", ["<u2", "<u4"])
def test_packed_candidates_ask_the_worker_the_same(width: str) -> None:
    for group in random_groups(1):
        packed = replace(
            group,
            responses=tuple(
                one
                if one.candidate_ids_TC is None
                else replace(one, candidate_ids_TC=one.candidate_ids_TC.astype(width))
                for one in group.responses
            ),
        )
        for ours, expected in zip(plan(packed).requests, plan(group).requests, strict=True):
            assert ours.question.to_kwargs() == expected.question.to_kwargs()
            if ours.question.candidates is not None:
                assert ours.question.candidates.ids_E.dtype == np.int32
