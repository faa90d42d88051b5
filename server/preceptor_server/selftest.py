"""Before the server answers anyone: does this engine, as configured, agree with the plainest forward of the same model?

Compares position by position, never means: a shift by one token must fail, and a mean would not see it.
"""

# T = tokens of a response, N = its scored positions, V = vocabulary size, C = candidates per position

from __future__ import annotations

import asyncio
import logging

import numpy as np
from preceptor.wire import LogprobArray

from preceptor_server.canaries import short_batch
from preceptor_server.engines.base import Engine
from preceptor_server.errors import StartupError
from preceptor_server.types import EngineInfo, GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup

logger = logging.getLogger(__name__)

TOLERANCE_NATS = {"float32": 2e-3, "bfloat16": 0.5}
"""Largest difference that arithmetic explains: bf16 logits near 20 are off by 0.06 each, more after thirty layers."""


async def check_engine(engine: Engine) -> float:
    """Scores two groups that share a prefix, together and alone, against the reference. Returns the largest difference.

    Raises StartupError, with the figures, where one exceeds TOLERANCE_NATS.
    """
    info = engine.info()
    batch = short_batch(info)
    together = await _score_together(engine, batch)
    worst = 0.0
    for index, group in enumerate(batch):
        alone = (await engine.score([group]))[0]
        for columns in (together[index], alone):
            _check_rows(group, columns, info)
        _check("scored alone against scored in a batch", _between(together[index], alone), info)
        worst = max(worst, await check_against_reference(engine, group, together[index]))
    logger.info("self-test passed largest_difference_nats=%.2e tolerance=%g", worst, TOLERANCE_NATS[info.dtype])
    return worst


async def check_batch(engine: Engine, batch: list[ScoreGroup], *, what: str) -> float:
    """Scores `batch` at once, and holds every position against a plain forward; returns the largest difference.

    Raises StartupError, saying `what` was tried, where one exceeds TOLERANCE_NATS.
    """
    worst = 0.0
    for group, columns in zip(batch, await _score_together(engine, batch), strict=True):
        for position, difference in await _against_reference(engine, group, columns):
            worst = max(worst, difference)
            _check(f"{what}, {position} after {len(group.prompt_ids_P)} of the prompt", difference, engine.info())
    return worst


async def _score_together(engine: Engine, batch: list[ScoreGroup]) -> list[GroupColumns]:
    if not engine.info().batches_itself:
        return await engine.score(batch)
    answers = await asyncio.gather(*(engine.score([group]) for group in batch))
    return [columns for [columns] in answers]


async def check_against_reference(engine: Engine, group: ScoreGroup, columns: GroupColumns) -> float:
    """Holds every position against a plain forward; returns the largest difference, in nats.

    Raises StartupError, naming the position, where one exceeds TOLERANCE_NATS.
    """
    worst = 0.0
    for position, difference in await _against_reference(engine, group, columns):
        worst = max(worst, difference)
        _check(f"against a plain forward, {position}", difference, engine.info())
    return worst


async def _against_reference(engine: Engine, group: ScoreGroup, columns: GroupColumns) -> list[tuple[str, float]]:
    """For each response and position, the largest difference over its columns: nats, and mass for the tail."""
    differences: list[tuple[str, float]] = []
    for index, (response, scores) in enumerate(zip(group.responses, columns, strict=True)):
        ids = np.concatenate([group.prompt_ids_P, response.ids_T])
        reference_TV = (await engine.reference_logprobs(ids, first_row=len(group.prompt_ids_P) - 1))[:-1]
        rows_T = np.arange(len(response.ids_T))
        sampled_T = np.abs(reference_TV[rows_T, response.ids_T] - scores.sampled_logprobs_N)
        of_its_ids_TK = np.take_along_axis(reference_TV, scores.support_ids_NK, 1) - scores.support_logprobs_NK
        of_the_largest_TK = -np.sort(-reference_TV, axis=1)[:, : group.top_k] - scores.support_logprobs_NK
        support_T = np.maximum(np.abs(of_its_ids_TK), np.abs(of_the_largest_TK)).max(axis=1)
        probabilities_TV = np.exp(reference_TV)
        outside_T = 1 - np.take_along_axis(probabilities_TV, scores.support_ids_NK, 1).sum(axis=1)
        tail_T = np.abs(np.exp(scores.log_tail_mass_N) - outside_T)
        entropy_T = _of_entropies(reference_TV, scores)
        candidates_T = _of_candidates(reference_TV, response, scores)
        # numpy's maximum, unlike Python's, keeps a NaN.
        worst_T = np.maximum.reduce([sampled_T, support_T, tail_T, entropy_T, candidates_T])
        differences += [(f"response {index} token {t}", float(worst_T[t])) for t in rows_T]
    return differences


def _of_entropies(reference_TV: LogprobArray, scores: ResponseColumns) -> LogprobArray:
    """The difference of each row's entropy, [T]; 0 where the engine computes none."""
    if scores.entropies_N is None:
        return np.zeros(len(reference_TV), np.float32)
    difference_T: LogprobArray = np.abs(-(np.exp(reference_TV) * reference_TV).sum(axis=1) - scores.entropies_N)
    return difference_T


def _of_candidates(reference_TV: LogprobArray, response: ResponseToScore, scores: ResponseColumns) -> LogprobArray:
    """The largest difference over each row's candidates, [T]; 0 where there are none."""
    if response.candidate_ids_TC is None or scores.candidate_logprobs_NC is None:
        return np.zeros(len(reference_TV), np.float32)
    expected_TC: LogprobArray = np.take_along_axis(reference_TV, response.candidate_ids_TC, 1)
    worst_T: LogprobArray = np.abs(expected_TC - scores.candidate_logprobs_NC).max(axis=1)
    return worst_T


def _check_rows(group: ScoreGroup, columns: GroupColumns, info: EngineInfo) -> None:
    for index, (response, scores) in enumerate(zip(group.responses, columns, strict=True)):
        if len(scores.sampled_logprobs_N) != len(response.ids_T):
            raise StartupError(
                f"self-test failed: response {index}: {len(scores.sampled_logprobs_N)} rows for "
                f"{len(response.ids_T)} tokens"
            )
        if (scores.entropies_N is not None) != info.computes_entropies:
            says = "computes" if info.computes_entropies else "does not compute"
            raise StartupError(f"self-test failed: response {index}: the engine says that it {says} entropies")
        named, answered = response.candidate_ids_TC, scores.candidate_logprobs_NC
        if named is not None and (answered is None or answered.shape != named.shape):
            shape = None if answered is None else answered.shape
            raise StartupError(f"self-test failed: response {index}: candidates {named.shape} are answered by {shape}")


def _between(a: GroupColumns, b: GroupColumns) -> float:
    differences = [x.sampled_logprobs_N - y.sampled_logprobs_N for x, y in zip(a, b, strict=True)]
    return float(np.abs(np.concatenate(differences)).max())


def _check(what: str, difference: float, info: EngineInfo) -> None:
    # Not `difference > tolerance`: a NaN must fail too.
    if not difference <= TOLERANCE_NATS[info.dtype]:
        raise StartupError(
            f"self-test failed: {what}: off by {difference:.4g} nats, "
            f"tolerance {TOLERANCE_NATS[info.dtype]} for {info.dtype}. {info.remedy}".rstrip()
        )
