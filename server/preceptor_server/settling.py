"""Finds, before the server answers anyone, a way of the engine to compute that is right for its model.

The self-test first, then sequences past every length at which the model's config says that something changes, as far as
time allows; and, where an engine has a second way, that one after the first has failed.
"""

from __future__ import annotations

import logging
import time

from preceptor_server.canaries import threshold_batch
from preceptor_server.engines.base import Engine, FallsBack
from preceptor_server.errors import ServerError, StartupError, said
from preceptor_server.selftest import check_batch, check_engine
from preceptor_server.types import ScoreGroup

logger = logging.getLogger(__name__)

_REHEARSAL_TOKENS = 256
"""Tokens from whose time that of longer sequences is estimated."""


async def settle_engine(engine: Engine, *, seconds: float) -> None:
    """Returns once the engine has passed. `seconds` bound what is spent beyond the self-test, by an estimate.

    Raises StartupError, with the figures, where no way of the engine passes.
    """
    try:
        await _check(engine, seconds=seconds)
    except StartupError as error:
        if not (isinstance(engine, FallsBack) and engine.fall_back(str(error))):
            raise
        await _check(engine, seconds=seconds)


async def _check(engine: Engine, *, seconds: float) -> None:
    """A model's own code may raise anything, and does where its architecture does not fit."""
    try:
        await check_engine(engine)
        await _cross_thresholds(engine, seconds=seconds)
    except ServerError:
        raise
    except Exception as error:
        message = f"self-test failed: the model's forward failed: {said(error)}. {engine.info().remedy}"
        raise StartupError(message.rstrip()) from error


async def _cross_thresholds(engine: Engine, *, seconds: float) -> None:
    info = engine.info()
    thresholds = {name: tokens for name, tokens in info.thresholds.items() if tokens < info.max_model_len}
    if not thresholds:
        return
    started = time.perf_counter()
    seconds_per_token = await _rehearse(engine)
    for name, tokens in thresholds.items():
        batch = threshold_batch(info, tokens)
        estimate = seconds_per_token * _num_computed(batch)
        if estimate > seconds - (time.perf_counter() - started):
            logger.warning(
                "not checked: sequences beyond %s=%d, which would take about %.0f s: raise engine.self_test_seconds "
                "to check them at the next start", name, tokens, estimate,
            )  # fmt: skip
            continue
        worst = await check_batch(engine, batch, what=f"sequences beyond {name}={tokens}, a short one beside them")
        logger.info("self-test passed beyond %s=%d largest_difference_nats=%.2e", name, tokens, worst)


async def _rehearse(engine: Engine) -> float:
    """Seconds per token of a forward that is neither tiny nor long."""
    info = engine.info()
    ids = threshold_batch(info, min(_REHEARSAL_TOKENS, info.max_model_len - 1))[1].prompt_ids_P
    started = time.perf_counter()
    await engine.reference_logprobs(ids, first_row=len(ids) - 1)
    return (time.perf_counter() - started) / len(ids)


def _num_computed(batch: list[ScoreGroup]) -> int:
    """Tokens of the batch, and of the plain forward over each of its responses."""
    plain = sum(len(group.prompt_ids_P) + len(one.ids_T) for group in batch for one in group.responses)
    return plain + sum(group.num_tokens for group in batch)
