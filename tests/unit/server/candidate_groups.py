"""Groups whose responses name candidates, and what must hold of every answer to them."""

# N = scored positions, C = candidates per position

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from preceptor_server.types import GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup


def with_candidates(batch: Sequence[ScoreGroup], rng: np.random.Generator, *, vocabulary_size: int) -> list[ScoreGroup]:
    """The same groups; two responses in three name candidates, each another number of them, the first response always.
    Among them are the sampled tokens, and ids that stand in a row twice."""
    return [
        replace(
            group,
            responses=tuple(
                _naming(response, rng, vocabulary_size) if g + r == 0 or rng.random() < 2 / 3 else response
                for r, response in enumerate(group.responses)
            ),
        )
        for g, group in enumerate(batch)
    ]


def _naming(response: ResponseToScore, rng: np.random.Generator, vocabulary_size: int) -> ResponseToScore:
    ids_TC = rng.integers(0, vocabulary_size, (len(response.ids_T), int(rng.integers(1, 13))))
    ids_TC[:, -1] = response.ids_T
    if ids_TC.shape[1] > 2:
        ids_TC[:, 0] = ids_TC[:, 1]
    return replace(response, candidate_ids_TC=ids_TC)


def assert_agrees_with_support(response: ResponseToScore, columns: ResponseColumns) -> int:
    """A candidate that stands in the support, or was sampled, has the logprob of it, to the bit; all others are not
    likelier than the support. Returns how many stand in it."""
    assert response.candidate_ids_TC is not None
    assert columns.candidate_logprobs_NC is not None
    is_scored_T = columns.status_T == 1
    num_inside = 0
    for row, ids in enumerate(response.candidate_ids_TC[is_scored_T].tolist()):
        # Backwards, so that what fills a row up, its first id at -inf, does not count.
        support = zip(columns.support_ids_NK[row].tolist(), columns.support_logprobs_NK[row], strict=True)
        known = dict(reversed(list(support)))
        sampled = int(response.ids_T[is_scored_T][row])
        for token, logprob in zip(ids, columns.candidate_logprobs_NC[row], strict=True):
            num_inside += token in known
            if token in known:
                assert logprob == known[token]
            else:
                assert logprob <= columns.support_logprobs_NK[row, -1]
            if token == sampled:
                assert logprob == columns.sampled_logprobs_N[row]
    return num_inside


def assert_all_agree_with_support(batch: Sequence[ScoreGroup], answers: Sequence[GroupColumns]) -> None:
    """`assert_agrees_with_support` for every response that names candidates; the others are answered without."""
    num_inside = 0
    for group, answer in zip(batch, answers, strict=True):
        for response, columns in zip(group.responses, answer, strict=True):
            if response.candidate_ids_TC is None:
                assert columns.candidate_logprobs_NC is None
            else:
                num_inside += assert_agrees_with_support(response, columns)
    assert num_inside > 0, "no candidate stands in a support: the comparison would prove nothing"
