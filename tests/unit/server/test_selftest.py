from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from preceptor.wire import LogprobArray, TokenArray
from preceptor_server.errors import StartupError
from preceptor_server.selftest import TOLERANCE_NATS, check_engine
from preceptor_server.types import EngineInfo, GroupColumns, ResponseColumns, ScoreGroup

from tests.engines.fake import FakeEngine

Distortion = Callable[[list[GroupColumns]], list[GroupColumns]]


def fake_engine(*, vocabulary_size: int = 256, max_model_len: int = 4096) -> FakeEngine:
    return FakeEngine(vocabulary_size=vocabulary_size, max_model_len=max_model_len)


class DistortedEngine:
    """The fake engine, whose answers are spoilt on their way out."""

    def __init__(
        self, distort: Distortion, *, in_batches: bool = True, alone: bool = True, dtype: str = "float32"
    ) -> None:
        self._engine = fake_engine()
        self._distort = distort
        self._in_batches = in_batches
        self._alone = alone
        self._dtype = dtype

    def load(self) -> None:
        self._engine.load()

    def close(self) -> None:
        self._engine.close()

    def info(self) -> EngineInfo:
        return replace(self._engine.info(), dtype=self._dtype, remedy="Try another way")

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        answers = await self._engine.score(batch)
        is_distorted = self._alone if len(batch) == 1 else self._in_batches
        return self._distort(answers) if is_distorted else answers

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        return await self._engine.reference_logprobs(token_ids, first_row=first_row)


def each(change: Callable[[ResponseColumns], ResponseColumns]) -> Distortion:
    """The same change to every response."""
    return lambda answers: [tuple(change(columns) for columns in answer) for answer in answers]


def last(change: Callable[[ResponseColumns], ResponseColumns]) -> Distortion:
    """A change to the last response of every group."""
    return lambda answers: [(*answer[:-1], change(answer[-1])) for answer in answers]


def shift_rows(columns: ResponseColumns) -> ResponseColumns:
    return replace(
        columns,
        support_ids_NK=np.roll(columns.support_ids_NK, 1, axis=0),
        support_logprobs_NK=np.roll(columns.support_logprobs_NK, 1, axis=0),
        sampled_logprobs_N=np.roll(columns.sampled_logprobs_N, 1),
    )


def shift_support(columns: ResponseColumns) -> ResponseColumns:
    return replace(
        columns,
        support_ids_NK=np.roll(columns.support_ids_NK, 1, axis=0),
        support_logprobs_NK=np.roll(columns.support_logprobs_NK, 1, axis=0),
    )


def scale(columns: ResponseColumns) -> ResponseColumns:
    return replace(
        columns,
        support_logprobs_NK=(columns.support_logprobs_NK * 1.01).astype(np.float32),
        sampled_logprobs_N=(columns.sampled_logprobs_N * 1.01).astype(np.float32),
    )


def add_to_sampled(nats: float) -> Callable[[ResponseColumns], ResponseColumns]:
    return lambda columns: replace(columns, sampled_logprobs_N=columns.sampled_logprobs_N + np.float32(nats))


def nan_in_sampled(columns: ResponseColumns) -> ResponseColumns:
    logprobs_N = columns.sampled_logprobs_N.copy()
    logprobs_N[-1] = np.nan
    return replace(columns, sampled_logprobs_N=logprobs_N)


def nan_in_support(columns: ResponseColumns) -> ResponseColumns:
    logprobs_NK = columns.support_logprobs_NK.copy()
    logprobs_NK[-1, -1] = np.nan
    return replace(columns, support_logprobs_NK=logprobs_NK)


def other_ids(columns: ResponseColumns) -> ResponseColumns:
    return replace(columns, support_ids_NK=(columns.support_ids_NK + 1) % 256)


def least_likely(columns: ResponseColumns) -> ResponseColumns:
    """A support of one token and its copies: the right logprob, but not that of the K likeliest."""
    return replace(
        columns,
        support_ids_NK=columns.support_ids_NK[:, [-1] * columns.support_ids_NK.shape[1]],
        support_logprobs_NK=columns.support_logprobs_NK[:, [-1] * columns.support_ids_NK.shape[1]],
    )


def misplace_tail(columns: ResponseColumns) -> ResponseColumns:
    return replace(columns, log_tail_mass_N=columns.log_tail_mass_N + np.float32(0.1))


def misstate_entropy(columns: ResponseColumns) -> ResponseColumns:
    assert columns.entropies_N is not None
    return replace(columns, entropies_N=columns.entropies_N + np.float32(0.01))


def leave_out_entropy(columns: ResponseColumns) -> ResponseColumns:
    return replace(columns, entropies_N=None)


def drop_a_row(columns: ResponseColumns) -> ResponseColumns:
    return replace(
        columns,
        support_ids_NK=columns.support_ids_NK[1:],
        support_logprobs_NK=columns.support_logprobs_NK[1:],
        sampled_logprobs_N=columns.sampled_logprobs_N[1:],
    )


def move_candidates(
    change: Callable[[LogprobArray], LogprobArray | None],
) -> Callable[[ResponseColumns], ResponseColumns]:
    """Changes the candidates alone, where there are any."""

    def moved(columns: ResponseColumns) -> ResponseColumns:
        named = columns.candidate_logprobs_NC
        return columns if named is None else replace(columns, candidate_logprobs_NC=change(named))

    return moved


def nan_at_the_end(logprobs_NC: LogprobArray) -> LogprobArray:
    changed = logprobs_NC.copy()
    changed[-1, -1] = np.nan
    return changed


def swap_responses(answers: list[GroupColumns]) -> list[GroupColumns]:
    return [tuple(reversed(answer)) for answer in answers]


def swap_groups(answers: list[GroupColumns]) -> list[GroupColumns]:
    return list(reversed(answers))


@pytest.mark.parametrize(
    ("vocabulary_size", "max_model_len"), [(256, 4096), (2, 64), (1000, 4)]
)  # fmt: skip
async def test_engine_that_agrees_with_its_reference_passes(vocabulary_size: int, max_model_len: int) -> None:
    worst = await check_engine(fake_engine(vocabulary_size=vocabulary_size, max_model_len=max_model_len))
    assert worst < 1e-5


class WithoutCandidates(DistortedEngine):
    """An engine that scores none, and is not asked for any."""

    def info(self) -> EngineInfo:
        return replace(super().info(), scores_candidates=False)

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        assert all(response.candidate_ids_TC is None for group in batch for response in group.responses)
        return await super().score(batch)


async def test_engine_that_scores_no_candidates_is_not_asked_for_any() -> None:
    assert await check_engine(WithoutCandidates(each(lambda columns: columns))) < 1e-5


class OneByOne(DistortedEngine):
    """An engine that batches by itself: it takes single groups, and notes how many it has at once."""

    num_inside = most_inside = 0

    def info(self) -> EngineInfo:
        return replace(super().info(), batches_itself=True, max_tokens_in_flight=1000)

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        assert len(batch) == 1
        self.num_inside += 1
        self.most_inside = max(self.most_inside, self.num_inside)
        answers = await super().score(batch)
        self.num_inside -= 1
        return answers


async def test_engine_that_batches_by_itself_is_checked_with_groups_side_by_side() -> None:
    engine = OneByOne(each(lambda columns: columns))
    assert await check_engine(engine) < 1e-5
    assert engine.most_inside == 2


async def test_engine_that_computes_no_entropies_passes_without_them() -> None:
    assert await check_engine(FakeEngine(computes_entropies=False)) < 1e-5


async def test_entropies_that_an_engine_says_it_does_not_compute_do_not_pass() -> None:
    class Contradicting(DistortedEngine):
        def info(self) -> EngineInfo:
            return replace(super().info(), computes_entropies=False)

    with pytest.raises(StartupError, match="says that it does not compute entropies"):
        await check_engine(Contradicting(each(lambda columns: columns)))


async def test_largest_difference_is_what_is_returned() -> None:
    worst = await check_engine(DistortedEngine(each(add_to_sampled(1e-3))))
    assert worst == pytest.approx(1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "distort",
    [
        each(shift_rows),
        each(shift_support),
        each(scale),
        each(nan_in_sampled),
        each(nan_in_support),
        last(nan_in_sampled),
        last(nan_in_support),
        each(other_ids),
        each(least_likely),
        each(misplace_tail),
        each(misstate_entropy),
        last(leave_out_entropy),
        each(drop_a_row),
        each(move_candidates(lambda logprobs_NC: np.roll(logprobs_NC, 1, axis=0))),
        each(move_candidates(lambda logprobs_NC: np.roll(logprobs_NC, 1, axis=1))),
        each(move_candidates(lambda logprobs_NC: logprobs_NC - np.float32(0.01))),
        each(move_candidates(nan_at_the_end)),
        each(move_candidates(lambda logprobs_NC: None)),
        each(move_candidates(lambda logprobs_NC: logprobs_NC[:, 1:])),
        swap_responses,
        swap_groups,
    ],
    ids=[
        "shifted by a token",
        "support shifted by a token",
        "scaled",
        "nan in sampled",
        "nan in support",
        "nan in the last sampled",
        "nan in the last support",
        "other ids",
        "not the likeliest tokens",
        "tail misplaced",
        "entropy misstated",
        "entropies left out",
        "a row too few",
        "candidates shifted by a token",
        "candidates of other ids",
        "candidates off",
        "nan in the last candidate",
        "candidates left out",
        "a candidate too few",
        "responses mixed up",
        "groups mixed up",
    ],
)
async def test_engine_that_is_wrong_does_not_start(distort: Distortion) -> None:
    with pytest.raises(StartupError, match="self-test failed"):
        await check_engine(DistortedEngine(distort))


@pytest.mark.parametrize(
    "distort", [each(shift_rows), last(nan_in_sampled), last(add_to_sampled(0.01)), swap_responses]
)
@pytest.mark.parametrize("in_batches", [True, False], ids=["wrong in batches", "wrong alone"])
async def test_engine_that_answers_otherwise_in_company_than_alone_does_not_start(
    distort: Distortion, in_batches: bool
) -> None:
    with pytest.raises(StartupError, match="self-test failed"):
        await check_engine(DistortedEngine(distort, in_batches=in_batches, alone=not in_batches))


async def test_failure_gives_the_figures_and_a_way_out() -> None:
    with pytest.raises(
        StartupError,
        match=r"response 0 token 0: off by 0\.012\d* nats, tolerance 0\.002 for float32\. Try another way$",
    ):
        await check_engine(DistortedEngine(each(add_to_sampled(0.0125))))


@pytest.mark.parametrize("dtype", TOLERANCE_NATS)
@pytest.mark.parametrize(("share_of_tolerance", "passes"), [(0.9, True), (1.1, False)])
async def test_tolerance_is_that_of_the_dtype(dtype: str, share_of_tolerance: float, passes: bool) -> None:
    nats = TOLERANCE_NATS[dtype] * share_of_tolerance
    engine = DistortedEngine(each(add_to_sampled(nats)), dtype=dtype)
    if passes:
        assert await check_engine(engine) == pytest.approx(nats, rel=0.05)
    else:
        with pytest.raises(StartupError, match=dtype):
            await check_engine(engine)
