from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from preceptor.wire import LogprobArray, TokenArray
from preceptor_server.canaries import threshold_batch
from preceptor_server.errors import StartupError
from preceptor_server.settling import settle_engine
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup

from tests.engines.fake import FakeEngine

MAX_MODEL_LEN = 4096
BEFORE = 60


class EngineWithThresholds:
    """The fake engine with a way to compute that is wrong for long sequences, or for short ones beside them."""

    def __init__(
        self,
        thresholds: dict[str, int],
        *,
        wrong_beyond: int | None = None,
        wrong_beside: int | None = None,
        raises: Exception | None = None,
    ) -> None:
        self._engine = FakeEngine(max_model_len=MAX_MODEL_LEN)
        self._thresholds = thresholds
        self._wrong_beyond = wrong_beyond
        self._wrong_beside = wrong_beside
        self._raises = raises
        self.longest = 0
        self.references = 0

    def load(self) -> None:
        self._engine.load()

    def close(self) -> None:
        self._engine.close()

    def info(self) -> EngineInfo:
        return replace(self._engine.info(), thresholds=self._thresholds, remedy="Set engine.way.")

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        if self._raises is not None:
            raise self._raises
        lengths = [max(len(group.prompt_ids_P) + len(one.ids_T) for one in group.responses) for group in batch]
        self.longest = max(self.longest, *lengths)
        return [
            tuple(
                replace(one, sampled_logprobs_N=one.sampled_logprobs_N + self._error(length, lengths)) for one in answer
            )
            for answer, length in zip(await self._engine.score(batch), lengths, strict=True)
        ]

    def _error(self, length: int, lengths: list[int]) -> np.float32:
        is_wrong = self._wrong_beyond is not None and length > self._wrong_beyond
        is_wrong |= self._wrong_beside is not None and length <= self._wrong_beside < max(lengths)
        return np.float32(0.1 if is_wrong else 0.0)

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        self.references += 1
        return await self._engine.reference_logprobs(token_ids, first_row=first_row)


class EngineWithTwoWays(EngineWithThresholds):
    """Whose second way is right."""

    reason: str | None = None

    def fall_back(self, reason: str) -> bool:
        if self.reason is not None:
            return False
        self.reason = reason
        self._raises = self._wrong_beyond = self._wrong_beside = None
        return True


async def test_an_engine_that_is_wrong_beyond_a_threshold_of_its_config_does_not_start() -> None:
    engine = EngineWithThresholds({"sliding_window": 200}, wrong_beyond=200)
    with pytest.raises(StartupError, match=r"sequences beyond sliding_window=200.* off by 0\.1.* Set engine\.way\."):
        await settle_engine(engine, seconds=60)


async def test_an_engine_that_is_wrong_for_a_short_sequence_beside_a_long_one_does_not_start() -> None:
    engine = EngineWithThresholds({"original_max_position_embeddings": 300}, wrong_beside=300)
    with pytest.raises(StartupError, match=r"beyond original_max_position_embeddings=300, a short one beside"):
        await settle_engine(engine, seconds=60)


async def test_every_threshold_that_can_be_reached_is_crossed() -> None:
    engine = EngineWithThresholds({"rope": 900, "window": 64, "never": MAX_MODEL_LEN, "last": MAX_MODEL_LEN - 1})
    await settle_engine(engine, seconds=600)
    assert engine.longest == MAX_MODEL_LEN


async def test_what_time_does_not_allow_is_named(caplog: pytest.LogCaptureFixture) -> None:
    engine = EngineWithThresholds({"sliding_window": 1024}, wrong_beyond=1024)
    with caplog.at_level(logging.WARNING):
        await settle_engine(engine, seconds=0)
    assert engine.longest < BEFORE
    [message] = [record.message for record in caplog.records]
    assert "not checked: sequences beyond sliding_window=1024" in message
    assert "engine.self_test_seconds" in message


@pytest.mark.parametrize(
    "fault",
    [
        {"wrong_beyond": 0},
        {"wrong_beyond": 200},
        {"wrong_beside": 200},
        {"raises": AttributeError("its cache has no states")},
    ],
    ids=["wrong from the first token", "wrong beyond", "wrong beside", "raises"],
)
async def test_an_engine_with_a_second_way_takes_to_it_and_is_told_why(
    fault: dict[str, Any],
) -> None:  # Any: a number, or an error
    engine = EngineWithTwoWays({"sliding_window": 200}, **fault)
    await settle_engine(engine, seconds=60)
    assert engine.reason is not None
    assert engine.reason.startswith("self-test failed")
    assert engine.longest > 200, "the second way is held to the same"


async def test_what_a_models_own_code_raises_is_told_with_its_type_and_the_way_out() -> None:
    engine = EngineWithThresholds({}, raises=KeyError("conv_states"))
    with pytest.raises(StartupError, match=r"the model's forward failed: KeyError: 'conv_states'\. Set engine\.way\."):
        await settle_engine(engine, seconds=60)


async def test_an_engine_without_thresholds_is_asked_no_more_than_the_short_test() -> None:
    engine = EngineWithThresholds({})
    await settle_engine(engine, seconds=60)
    assert (engine.longest, engine.references) == (40, 4)


@pytest.mark.parametrize("threshold", [2, 3, 5, 60, 4000, MAX_MODEL_LEN - 1])
def test_a_threshold_batch_has_sequences_on_both_sides_and_stays_in_the_context(threshold: int) -> None:
    info = FakeEngine(max_model_len=MAX_MODEL_LEN).info()
    lengths = [
        len(group.prompt_ids_P) + len(one.ids_T)
        for group in threshold_batch(info, threshold)
        for one in group.responses
    ]
    assert max(lengths) == min(MAX_MODEL_LEN, threshold + max(32, threshold // 2))
    assert max(lengths) > threshold
    assert min(lengths) >= 2
    if threshold >= BEFORE:
        assert {threshold - 2, threshold} < set(lengths)
        assert min(lengths) < threshold // 2
