"""Ids that a client names, through a real server, against a dense log-softmax of the same weights."""

# T = tokens of a response, N = scored positions, C = candidates per position, K = support size, V = vocabulary

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor.wire import (
    LogprobArray,
    LogprobDtype,
    PositionStatus,
    SegmentationPolicy,
    TokenArray,
    VocabularyRelation,
)
from preceptor_client import ResponseScores, StudentIds, TeacherClient, TeacherIds
from preceptor_client.errors import InvalidRequestError, NotImplementedByServerError
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.integration.servers import RunningServer
from tests.tiny import VOCABULARY_SIZE, tiny_tokenizer
from tests.unit.server.alignment.tokenizers_for_tests import gemma_like, permuted

F32 = LogprobDtype.F32
FP32_NATS = 1e-5
"""Two layers of fp32 in another order of summation."""
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    return loaded


@pytest.fixture
async def client(hf_server: RunningServer) -> AsyncIterator[TeacherClient]:
    async with TeacherClient(hf_server.address) as opened:
        yield opened


@torch.inference_mode()
def oracle(model: PreTrainedModel, response: TokenArray, *, temperature: float = 1.0) -> LogprobArray:
    """[T, V]: one forward of one sequence, a dense log-softmax in fp32."""
    ids = torch.from_numpy(np.concatenate([PROMPT, response]))[None]
    logits_TV = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1]
    logprobs_TV: LogprobArray = (logits_TV / temperature).log_softmax(dim=-1).numpy()
    return logprobs_TV


def named_ids(
    rng: np.random.Generator, response: TokenArray, *, num: int, largest: int = VOCABULARY_SIZE
) -> TokenArray:
    """At random, with the sampled token last and, where there is room, the first id twice."""
    ids_TC = rng.integers(0, largest, (len(response), num))
    ids_TC[:, -1] = response
    ids_TC[:, min(1, num - 1)] = ids_TC[:, 0]
    return ids_TC


def assert_bit_equal_to_support(scores: ResponseScores) -> int:
    """Where a candidate stands in the support. Returns how many do."""
    assert scores.candidate_ids_NC is not None
    assert scores.candidate_logprobs_NC is not None
    is_same_NCK = scores.candidate_ids_NC[:, :, None] == scores.support_ids_NK[:, None, :]
    rows, named, supported = np.nonzero(is_same_NCK & ~np.isneginf(scores.support_logprobs_NK)[:, None, :])
    np.testing.assert_array_equal(
        scores.candidate_logprobs_NC[rows, named], scores.support_logprobs_NK[rows, supported]
    )
    return len(rows)


async def test_candidates_equal_a_full_log_softmax_whatever_else_is_in_the_batch(
    client: TeacherClient, model: PreTrainedModel
) -> None:
    rng = np.random.default_rng(2)
    responses = [rng.integers(0, VOCABULARY_SIZE, length) for length in (1, 30, 7, 12)]
    # One, more than the support, none, the whole vocabulary.
    named = [named_ids(rng, responses[0], num=1), named_ids(rng, responses[1], num=40), None]
    named.append(np.tile(np.arange(VOCABULARY_SIZE), (12, 1)))
    masks = [None, rng.random(30) < 0.6, None, None]
    others = [client.score(TeacherIds(rng.integers(0, 259, 9)), [[1, 2]], top_k=3) for _ in range(8)]
    for temperature in (1.0, 0.5, 2.0):
        asked = client.score(
            TeacherIds(PROMPT),
            responses,
            top_k=8,
            temperature=temperature,
            score_masks=masks,
            candidate_ids=named,
            logprob_dtype=F32,
        )
        answer, *_ = await asyncio.gather(asked, *others)
        others = []
        for response, ids_TC, scores in zip(responses, named, answer.responses, strict=True):
            if ids_TC is None:
                assert scores.candidate_logprobs_NC is None
                continue
            assert scores.candidate_ids_NC is not None
            assert scores.candidate_logprobs_NC is not None
            np.testing.assert_array_equal(scores.candidate_ids_NC, ids_TC[scores.positions_N])
            expected_TC = np.take_along_axis(oracle(model, response, temperature=temperature), ids_TC, axis=1)
            np.testing.assert_allclose(
                scores.candidate_logprobs_NC, expected_TC[scores.positions_N], atol=FP32_NATS / temperature
            )
            is_sampled_NC = scores.candidate_ids_NC == response[scores.positions_N][:, None]
            assert (
                scores.candidate_logprobs_NC[is_sampled_NC]
                == np.broadcast_to(scores.sampled_logprobs_N[:, None], is_sampled_NC.shape)[is_sampled_NC]
            ).all()
            num_inside = assert_bit_equal_to_support(scores)
            assert num_inside or len(response) == 1
        assert assert_bit_equal_to_support(answer.responses[3]) == 12 * 8


async def test_half_precision_rounds_candidates_and_support_alike(client: TeacherClient) -> None:
    rng = np.random.default_rng(3)
    response = rng.integers(0, VOCABULARY_SIZE, 20)
    named = np.tile(np.arange(VOCABULARY_SIZE), (20, 1))
    half, single = [
        (await client.score(TeacherIds(PROMPT), [response], top_k=16, candidate_ids=[named], logprob_dtype=dtype))
        for dtype in LogprobDtype
    ]
    assert assert_bit_equal_to_support(half.responses[0]) == 20 * 16
    rounded, exact = half.responses[0].candidate_logprobs_NC, single.responses[0].candidate_logprobs_NC
    assert rounded is not None
    assert exact is not None
    np.testing.assert_allclose(rounded, exact, rtol=2**-10)


@pytest.mark.parametrize("policy", [SegmentationPolicy.AS_IS, SegmentationPolicy.MASK, SegmentationPolicy.PAPER])
async def test_a_permuted_students_candidates_are_the_teachers_own_to_the_bit(
    client: TeacherClient, policy: SegmentationPolicy
) -> None:
    own_json = tiny_tokenizer().backend_tokenizer.to_str()
    student_json = permuted(own_json)
    registration = await client.register_tokenizer(student_json)
    assert registration.report.relation is VocabularyRelation.PERMUTED
    own, theirs = json.loads(own_json)["model"]["vocab"], json.loads(student_json)["model"]["vocab"]
    new_of_old = np.empty(VOCABULARY_SIZE, np.int64)
    new_of_old[[own[token] for token in own]] = [theirs[token] for token in own]
    rng = np.random.default_rng(4)
    response = rng.integers(3, 3 + 256, 25)
    named = named_ids(rng, response, num=60)
    plain = await client.score(
        TeacherIds(PROMPT), [response], top_k=12, candidate_ids=[named], batch_invariant=True, logprob_dtype=F32
    )
    mapped = await client.score(
        StudentIds(new_of_old[PROMPT]),
        [new_of_old[response]],
        top_k=12,
        candidate_ids=[new_of_old[named]],
        batch_invariant=True,
        logprob_dtype=F32,
        tokenizer_id=registration.tokenizer_id,
        segmentation=policy,
        paper_token_ids=[int(new_of_old[2])] if policy is SegmentationPolicy.PAPER else [],
    )
    a, b = plain.responses[0], mapped.responses[0]
    assert len(b.positions_N) >= 20
    assert a.candidate_logprobs_NC is not None
    np.testing.assert_array_equal(b.candidate_ids_NC, new_of_old[named][b.positions_N])
    np.testing.assert_array_equal(b.candidate_logprobs_NC, a.candidate_logprobs_NC[b.positions_N])
    assert assert_bit_equal_to_support(b) > 0


@pytest.mark.parametrize("top_k", [1, 4, VOCABULARY_SIZE])
async def test_all_of_the_teachers_end_tokens_are_one_candidate(
    client: TeacherClient, model: PreTrainedModel, top_k: int
) -> None:
    # The student may end with either of 0 and 2, the teacher with any of 0, 1 and 2.
    registration = await client.register_tokenizer(
        tiny_tokenizer().backend_tokenizer.to_str(), end_token_ids=[2, 0], teacher_end_token_ids=[0, 1, 2]
    )
    rng = np.random.default_rng(5)
    response = np.append(rng.integers(3, VOCABULARY_SIZE, 20), [0])
    named = np.tile(np.arange(VOCABULARY_SIZE), (len(response), 1))
    answer = await client.score(
        StudentIds(PROMPT),
        [response],
        top_k=top_k,
        candidate_ids=[named],
        logprob_dtype=F32,
        tokenizer_id=registration.tokenizer_id,
        segmentation=SegmentationPolicy.MASK,
    )
    scores = answer.responses[0]
    expected_NV = oracle(model, response)[scores.positions_N].astype(np.float64)
    end_N = np.logaddexp.reduce(expected_NV[:, :3], axis=1)
    expected_NV[:, :3] = -np.inf
    own_N = np.where(response[scores.positions_N] == 0, 0, 2)
    expected_NV[np.arange(len(own_N)), own_N] = end_N
    assert scores.status_T[-1] == PositionStatus.OK
    assert scores.candidate_logprobs_NC is not None
    np.testing.assert_allclose(scores.candidate_logprobs_NC, expected_NV, atol=FP32_NATS)
    assert_bit_equal_to_support(scores)
    # And the support is made of the same sums, though no end token need be among the likeliest.
    largest_NK = -np.sort(-expected_NV, axis=1)[:, :top_k]
    np.testing.assert_allclose(scores.support_logprobs_NK, largest_NK, atol=FP32_NATS)
    # None of it depends on whether somebody asks.
    silent = await client.score(
        StudentIds(PROMPT),
        [response],
        top_k=top_k,
        logprob_dtype=F32,
        tokenizer_id=registration.tokenizer_id,
        segmentation=SegmentationPolicy.MASK,
    )
    np.testing.assert_array_equal(silent.responses[0].support_ids_NK, scores.support_ids_NK)
    np.testing.assert_array_equal(silent.responses[0].support_logprobs_NK, scores.support_logprobs_NK)


async def test_strangers_are_refused_candidates_and_still_served(client: TeacherClient) -> None:
    registration = await client.register_tokenizer(gemma_like())
    response = [260, 261]
    with pytest.raises(
        NotImplementedByServerError, match=r"responses\[0\]\.candidates: they need ids that correspond one to one"
    ):
        await client.score(
            TeacherIds(PROMPT),
            [response],
            top_k=4,
            tokenizer_id=registration.tokenizer_id,
            candidate_ids=[np.array([[1], [2]])],
        )
    scores = await client.score(TeacherIds(PROMPT), [response], top_k=4, tokenizer_id=registration.tokenizer_id)
    assert scores.segmentation is SegmentationPolicy.CANONICAL


async def test_more_candidates_than_the_server_takes_are_refused_by_field(client: TeacherClient) -> None:
    with pytest.raises(InvalidRequestError, match=r"260 is outside \[1, 259\]"):
        await client.score(TeacherIds(PROMPT), [[1]], top_k=4, candidate_ids=[np.ones((1, 260), np.int64)])
    assert (await client.info()).teachers[0].capabilities.candidates
