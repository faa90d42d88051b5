from __future__ import annotations

import numpy as np
import pytest

from tests.engines.fake import FakeEngine
from tests.unit.server.candidate_groups import assert_all_agree_with_support, with_candidates
from tests.unit.server.groups import group_of, random_batch, response_of


def fake_engine(vocabulary_size: int = 50) -> FakeEngine:
    return FakeEngine(vocabulary_size=vocabulary_size)


async def test_reference_is_a_distribution_after_every_token() -> None:
    logprobs_TV = await fake_engine().reference_logprobs(np.array([3, 1, 4]))
    assert logprobs_TV.shape == (3, 50)
    np.testing.assert_allclose(np.exp(logprobs_TV.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


async def test_answer_depends_on_the_last_token_and_on_the_length_of_the_prefix() -> None:
    engine = fake_engine()
    one = await engine.reference_logprobs(np.array([3, 1]))
    other_token = await engine.reference_logprobs(np.array([3, 2]))
    repeated = await engine.reference_logprobs(np.array([3, 3]))
    assert np.abs(one[1] - other_token[1]).max() > 1
    assert np.abs(repeated[0] - repeated[1]).max() > 1


@pytest.mark.parametrize("seed", range(5))
async def test_scores_agree_with_the_reference(seed: int) -> None:
    engine, rng = fake_engine(), np.random.default_rng(seed)
    batch = with_candidates(random_batch(rng, vocabulary_size=50), rng, vocabulary_size=50)
    assert_all_agree_with_support(batch, await engine.score(batch))
    for group, answer in zip(batch, await engine.score(batch), strict=True):
        for response, columns in zip(group.responses, answer, strict=True):
            ids = np.concatenate([group.prompt_ids_P, response.ids_T])
            plain_TV = (await engine.reference_logprobs(ids))[len(group.prompt_ids_P) - 1 : -1].astype(np.float64)
            weights_TV = np.exp(plain_TV / group.temperature)
            logprobs_TV = np.log(weights_TV / weights_TV.sum(axis=1, keepdims=True))
            scored = response.score_mask_T
            sampled_T = logprobs_TV[np.arange(len(response.ids_T)), response.ids_T]
            np.testing.assert_allclose(columns.sampled_logprobs_N, sampled_T[scored], atol=1e-5)
            best_TK = -np.sort(-logprobs_TV, axis=1)[:, : group.top_k]
            np.testing.assert_allclose(columns.support_logprobs_NK, best_TK[scored], atol=1e-5)
            if response.candidate_ids_TC is not None and columns.candidate_logprobs_NC is not None:
                named_TC = np.take_along_axis(logprobs_TV, response.candidate_ids_TC, axis=1)
                np.testing.assert_allclose(columns.candidate_logprobs_NC, named_TC[scored], atol=1e-5)


async def test_masked_tokens_have_a_status_and_no_row() -> None:
    columns = (await fake_engine().score([group_of([1], response_of([2, 3, 4], [1, 0, 1]))]))[0][0]
    assert columns.status_T.tolist() == [1, 2, 1]
    assert len(columns.sampled_logprobs_N) == 2


async def test_groups_are_answered_in_the_order_of_the_batch() -> None:
    engine = fake_engine()
    a, b = group_of([1, 2], [3, 4]), group_of([5], [6, 7, 8])
    forwards, backwards = await engine.score([a, b]), await engine.score([b, a])
    np.testing.assert_array_equal(forwards[0][0].sampled_logprobs_N, backwards[1][0].sampled_logprobs_N)
    np.testing.assert_array_equal(forwards[1][0].sampled_logprobs_N, backwards[0][0].sampled_logprobs_N)
    assert len(forwards[1][0].sampled_logprobs_N) == 3


@pytest.mark.parametrize(("of_tokenizer", "vocabulary_size"), [(None, 50), (20, 50), (259, 259)])
def test_vocabulary_grows_to_the_tokenizers(of_tokenizer: int | None, vocabulary_size: int) -> None:
    assert FakeEngine(vocabulary_size=50, tokenizer_size=of_tokenizer).info().vocabulary_size == vocabulary_size


def test_revision_tells_vocabularies_apart() -> None:
    assert fake_engine(50).info().revision == fake_engine(50).info().revision
    assert fake_engine(50).info().revision != fake_engine(51).info().revision
