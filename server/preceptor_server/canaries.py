"""Random groups for the self-test: a short batch, and batches that cross the lengths at which a model changes."""

from __future__ import annotations

import numpy as np
from preceptor.wire import TokenArray

from preceptor_server.types import EngineInfo, ResponseToScore, ScoreGroup

_SEED = 2603
_TEMPERATURE = 1.0
_MAX_TOP_K = 16
_NUM_CANDIDATES = 5
_SHORT_PROMPT, _SHORT_RESPONSE = 20, 8
_STRADDLING = (2, 4, 8)
"""Tokens of responses to a prompt that ends four tokens before the threshold: below it, up to it, beyond it."""
_LEAST_BEYOND = 32
"""Tokens past a threshold, and at least half as many as it has: one token more or less moves logprobs by too little."""


def short_batch(info: EngineInfo) -> list[ScoreGroup]:
    """Two prompts with one beginning, two responses each, of unlike lengths; the first of them with candidates, the
    token that was written and others at random, where the engine scores them."""
    rng = np.random.default_rng(_SEED)
    room = info.max_model_len // 4

    def ids(length: int) -> TokenArray:
        return rng.integers(0, info.vocabulary_size, min(length, room), dtype=np.int64)

    def response(length: int, *, has_candidates: bool = False) -> ResponseToScore:
        ids_T, candidate_ids_TC = ids(length), None
        if has_candidates:
            others_TC = rng.integers(0, info.vocabulary_size, (len(ids_T), _NUM_CANDIDATES - 1), dtype=np.int64)
            candidate_ids_TC = np.concatenate([ids_T[:, None], others_TC], axis=1)
        mask_T = np.ones(len(ids_T), np.bool_)
        return ResponseToScore(ids_T=ids_T, score_mask_T=mask_T, candidate_ids_TC=candidate_ids_TC)

    shared = ids(24)
    prompts = [np.concatenate([shared, ids(7)]), np.concatenate([shared, ids(3)])]
    top_k = min(_MAX_TOP_K, info.largest_top_k)
    return [
        ScoreGroup(
            prompt_ids_P=prompt,
            responses=(response(9, has_candidates=info.scores_candidates), response(5)),
            top_k=top_k,
            temperature=_TEMPERATURE,
        )
        for prompt in prompts
    ]


def threshold_batch(info: EngineInfo, threshold: int) -> list[ScoreGroup]:
    """A short group, one whose responses end on both sides of `threshold` tokens, and one far beyond it. `threshold` is
    below the engine's longest sequence."""
    rng = np.random.default_rng(_SEED)
    longest = min(info.max_model_len, threshold + max(_LEAST_BEYOND, threshold // 2))
    before = max(1, threshold - 4)
    beyond = max(1, longest - _SHORT_RESPONSE)

    def group(num_prompt: int, *nums_response: int) -> ScoreGroup:
        lengths = [min(length, info.max_model_len - num_prompt) for length in nums_response]
        prompt, *responses = (
            rng.integers(0, info.vocabulary_size, length, dtype=np.int64) for length in (num_prompt, *lengths)
        )
        return ScoreGroup(
            prompt_ids_P=prompt,
            responses=tuple(
                ResponseToScore(ids_T=ids_T, score_mask_T=np.ones(len(ids_T), np.bool_)) for ids_T in responses
            ),
            top_k=min(_MAX_TOP_K, info.largest_top_k),
            temperature=_TEMPERATURE,
        )

    short = min(_SHORT_PROMPT, max(1, threshold // 2))
    return [group(short, _SHORT_RESPONSE), group(before, *_STRADDLING), group(beyond, longest - beyond)]
