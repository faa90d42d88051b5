"""Score groups for tests: by hand, and at random out of a seeded generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from preceptor.wire import TokenArray
from preceptor_server.types import ResponseToScore, ScoreGroup


def response_of(
    ids: Sequence[int] | TokenArray,
    mask: Sequence[bool | int] | None = None,
    *,
    candidates: Sequence[Sequence[int]] | TokenArray | None = None,
) -> ResponseToScore:
    """A response whose tokens are all scored, unless `mask` says otherwise."""
    ids_T = np.asarray(ids, np.int64)
    return ResponseToScore(
        ids_T=ids_T,
        score_mask_T=np.ones(len(ids_T), np.bool_) if mask is None else np.array(mask, np.bool_),
        candidate_ids_TC=None if candidates is None else np.asarray(candidates, np.int64),
    )


def group_of(
    prompt: Sequence[int] | TokenArray,
    *responses: ResponseToScore | Sequence[int],
    top_k: int = 4,
    temperature: float = 1.0,
    batch_invariant: bool = False,
    adapter: str = "",
) -> ScoreGroup:
    return ScoreGroup(
        prompt_ids_P=np.asarray(prompt, np.int64),
        responses=tuple(r if isinstance(r, ResponseToScore) else response_of(r) for r in responses),
        top_k=top_k,
        temperature=temperature,
        batch_invariant=batch_invariant,
        adapter=adapter,
    )


def group_of_size(num_tokens: int, *, batch_invariant: bool = False) -> ScoreGroup:
    """A group of that many tokens: one of them the prompt, the rest a response."""
    assert num_tokens >= 2
    return group_of([1], [2] * (num_tokens - 1), batch_invariant=batch_invariant)


def random_response(rng: np.random.Generator, *, length: int, vocabulary_size: int) -> ResponseToScore:
    """Four tokens in five are scored, at least one."""
    mask_T = rng.random(length) < 0.8
    mask_T[rng.integers(length)] = True
    return ResponseToScore(ids_T=rng.integers(0, vocabulary_size, length), score_mask_T=mask_T)


def random_batch(rng: np.random.Generator, *, vocabulary_size: int) -> list[ScoreGroup]:
    """Groups whose prompts are cut from few stems at random lengths, so that they share prefixes of every kind."""
    stems = [rng.integers(0, vocabulary_size, 60) for _ in range(2)]
    batch: list[ScoreGroup] = []
    for _ in range(rng.integers(1, 7)):
        stem = stems[rng.integers(len(stems))]
        ending = rng.integers(0, vocabulary_size, rng.choice([0, 0, 1, 5, 20]))
        prompt = np.concatenate([stem[: rng.integers(1, len(stem) + 1)], ending])
        lengths = rng.choice([1, 1, 2, 3, 8, 21], rng.integers(1, 4))
        responses = [random_response(rng, length=int(n), vocabulary_size=vocabulary_size) for n in lengths]
        batch.append(
            group_of(prompt, *responses, top_k=int(rng.integers(1, 9)), temperature=float(rng.choice([1.0, 0.5, 2.0])))
        )
    return batch
