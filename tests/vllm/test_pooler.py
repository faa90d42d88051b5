"""The pooler inside vLLM's worker, without vLLM's engine: chunks, preemption, mixed questions."""

# F = scheduled tokens of a forward, D = hidden size, V = vocabulary size, R = wanted rows of a request

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from preceptor_server.engines.candidates import CandidateRows
from preceptor_server.engines.columns import columns_of
from preceptor_server.engines.vllm.rows import FINITE, MISSING, NON_FINITE, RowAnswer, RowQuestion, read_answer

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

HIDDEN, VOCABULARY = 8, 90


@pytest.fixture
def weight_VD() -> torch.Tensor:
    return torch.randn(VOCABULARY, HIDDEN)


class Request:
    """A request's hidden states, what is wanted of them, and what vLLM keeps of it between forwards."""

    def __init__(self, length: int, question: RowQuestion) -> None:
        from vllm import PoolingParams
        from vllm.v1.pool.metadata import PoolingStates

        self.hidden_TD = torch.randn(length, HIDDEN)
        self.question = question
        self.params = PoolingParams(task="token_embed", extra_kwargs=question.to_kwargs())
        self.states = PoolingStates()
        self.num_computed = 0


def question(rng: np.random.Generator, length: int, *, top_k: int, has_candidates: bool = False) -> RowQuestion:
    positions = np.flatnonzero(rng.random(length) < 0.7)
    counts = rng.integers(0, 4, len(positions))
    candidates = CandidateRows(
        ids_E=rng.integers(0, VOCABULARY, counts.sum()), starts_N1=np.concatenate([[0], np.cumsum(counts)])
    )
    return RowQuestion(
        positions_R=positions,
        sampled_ids_R=rng.integers(0, VOCABULARY, len(positions)),
        candidates=candidates if has_candidates else None,
        top_k=top_k,
        temperature=float(rng.choice([0.5, 1.0, 2.0])),
        cache_limit=0,
    )


def forward(pooler: Any, requests: list[Request], lengths: list[int]) -> list[torch.Tensor | None]:
    """One forward over the next `lengths` tokens of each request."""
    from vllm.v1.pool.metadata import PoolingMetadata

    chunks = [one.hidden_TD[one.num_computed : one.num_computed + n] for one, n in zip(requests, lengths, strict=True)]
    for one, length in zip(requests, lengths, strict=True):
        one.num_computed += length
    metadata = PoolingMetadata(
        prompt_lens=torch.tensor([len(one.hidden_TD) for one in requests]),
        prompt_token_ids=None,
        prompt_token_ids_cpu=None,
        pooling_params=[one.params for one in requests],
        pooling_states=[one.states for one in requests],
    )
    metadata.build_pooling_cursor(
        np.array(lengths), torch.tensor([one.num_computed for one in requests]), device=torch.device("cpu")
    )
    answers: list[torch.Tensor | None] = pooler(torch.cat(chunks), metadata)
    return answers


def pooler_of(weight_VD: torch.Tensor, rows_per_chunk: int = 5) -> Any:
    from preceptor_server.engines.vllm.pooler import ScoringPooler

    return ScoringPooler(lambda hidden: hidden @ weight_VD.T, rows_per_chunk=rows_per_chunk)


def read(answer: torch.Tensor | None, request: Request) -> RowAnswer:
    assert answer is not None
    return read_answer(answer.numpy(), request.question)


def assert_right(answer: RowAnswer, request: Request, weight_VD: torch.Tensor) -> None:
    asked = request.question
    rows_E, ids_E = (None, None) if asked.candidates is None else asked.candidates.of_chunk(0, len(asked.positions_R))
    expected = columns_of(
        request.hidden_TD[asked.positions_R] @ weight_VD.T,
        sampled_ids_R=torch.from_numpy(asked.sampled_ids_R),
        temperatures_R=torch.full((len(asked.positions_R),), asked.temperature),
        top_ks_R=torch.full((len(asked.positions_R),), asked.top_k),
        max_top_k=asked.top_k,
        candidate_rows_E=None if rows_E is None else torch.from_numpy(rows_E),
        candidate_ids_E=None if ids_E is None else torch.from_numpy(ids_E),
    )
    assert answer.states_R.tolist() == [FINITE] * len(asked.positions_R)
    np.testing.assert_array_equal(answer.support_ids_RK, expected.support_ids_RK)
    np.testing.assert_allclose(answer.support_logprobs_RK, expected.support_logprobs_RK, atol=1e-5)
    np.testing.assert_allclose(answer.sampled_logprobs_R, expected.sampled_logprobs_R, atol=1e-5)
    np.testing.assert_allclose(answer.log_tail_mass_R, expected.log_tail_mass_R, atol=1e-4)
    np.testing.assert_allclose(answer.entropies_R, expected.entropies_R, atol=1e-5)
    if expected.candidate_logprobs_E is not None:
        np.testing.assert_allclose(answer.candidate_logprobs_E, expected.candidate_logprobs_E, atol=1e-5)


def test_unlike_questions_in_one_forward(weight_VD: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    shapes = [(9, 3, True), (1, 7, False), (14, 1, True), (6, 12, True)]
    requests = [Request(n, question(rng, n, top_k=k, has_candidates=c)) for n, k, c in shapes]
    answers = forward(pooler_of(weight_VD), requests, [9, 1, 14, 6])
    for answer, request in zip(answers, requests, strict=True):
        assert_right(read(answer, request), request, weight_VD)
        assert request.states.hidden_states_cache == []


def test_a_request_in_chunks_answers_with_the_last(weight_VD: torch.Tensor) -> None:
    rng = np.random.default_rng(1)
    long, short = Request(20, question(rng, 20, top_k=4, has_candidates=True)), Request(3, question(rng, 3, top_k=6))
    pooler = pooler_of(weight_VD)
    assert forward(pooler, [long], [7]) == [None]
    first, second = forward(pooler, [short, long], [3, 8])
    assert_right(read(first, short), short, weight_VD)
    assert second is None
    assert_right(read(forward(pooler, [long], [5])[0], long), long, weight_VD)


def test_a_preempted_request_is_computed_again_from_anywhere(weight_VD: torch.Tensor) -> None:
    rng = np.random.default_rng(2)
    request = Request(20, question(rng, 20, top_k=4, has_candidates=True))
    pooler = pooler_of(weight_VD)
    forward(pooler, [request], [15])
    request.num_computed = 6
    forward(pooler, [request], [10])
    assert_right(read(forward(pooler, [request], [4])[0], request), request, weight_VD)


def test_rows_that_no_forward_computed_say_so(weight_VD: torch.Tensor) -> None:
    request = Request(10, question(np.random.default_rng(3), 10, top_k=2))
    request.num_computed = 4
    answer = read(forward(pooler_of(weight_VD), [request], [6])[0], request)
    assert ((answer.states_R == MISSING) == (request.question.positions_R < 4)).all()
    assert (request.question.positions_R < 4).any()


def test_rows_that_are_not_numbers_say_so(weight_VD: torch.Tensor) -> None:
    request = Request(6, question(np.random.default_rng(4), 6, top_k=2))
    bad = int(request.question.positions_R[1])
    request.hidden_TD[bad] = torch.nan
    answer = read(forward(pooler_of(weight_VD), [request], [6])[0], request)
    assert answer.states_R.tolist() == [NON_FINITE if p == bad else FINITE for p in request.question.positions_R]


def test_a_rank_without_logits_answers_nothing_and_takes_part_in_every_chunk() -> None:
    from preceptor_server.engines.vllm.pooler import ScoringPooler

    chunks: list[int] = []
    pooler = ScoringPooler(lambda hidden: chunks.append(len(hidden)), rows_per_chunk=5)
    request = Request(12, question(np.random.default_rng(5), 12, top_k=2))
    answer = read(forward(pooler, [request], [12])[0], request)
    assert (answer.states_R == MISSING).all()
    assert sum(chunks) == len(request.question.positions_R)
    assert max(chunks) <= 5
