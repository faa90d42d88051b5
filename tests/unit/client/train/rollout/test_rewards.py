from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidEpisodeError, InvalidPartError
from preceptor_client.train.rollout.calls import call_all
from preceptor_client.train.rollout.episode import Episode, Segment, single_turn
from preceptor_client.train.rollout.rewards import (
    REWARD,
    MatchReward,
    RewardConfig,
    WeightedReward,
    rewarded,
    rewards_of,
)
from preceptor_client.train.stop import StopRequest

from tests.unit.client.train.rollout.fake_policy import OnBadList
from tests.unit.client.train.rollouts import student_view

EXAMPLE = Example(index=0, prompt="capital of Norway?", answer="Oslo", other_answers=("Kristiania",))
TEXTS = {5: "It is Oslo.", 6: "Bergen", 7: "Kristiania"}


def decode(ids: Sequence[int]) -> str:
    return " ".join(TEXTS[token] for token in ids)


def episode(token: int, *, slot: int = 0, sample: int = 0, reward: float | None = None) -> Episode:
    return single_turn(
        example=EXAMPLE, slot=slot, sample=sample, prompt_ids=(1,), response_ids=(token,), finish_reason="stop",
        student=student_view(1), reward=reward,
    )  # fmt: skip


def turns(*, part: int = 0, reward: float | tuple[float | None, ...] | None = None) -> Episode:
    return Episode(
        example=EXAMPLE, slot=4, sample=1, part=part, prompt_ids=(1,), finish_reason="stop", reward=reward,
        segments=(
            Segment(ids=(6,), is_policy=True, student=student_view(1)),
            Segment(ids=(7,), is_policy=False),
            Segment(ids=(5,), is_policy=True, student=student_view(1)),
            Segment(ids=(6,), is_policy=False),
        ),
    )  # fmt: skip


@dataclass
class Calling:
    """A reward that is a function."""

    function: Callable[[Episode, str], Any]  # Any: what a user's reward may return by mistake

    def reward(self, episode: Episode, text: str) -> float | Awaitable[float]:
        return self.function(episode, text)  # type: ignore[no-any-return]


def weighted(
    function: Callable[[Episode, str], object], *, seconds: float = 60.0, weight: float = 1.0
) -> WeightedReward:
    return WeightedReward(name="mine", reward=Calling(function), timeout_seconds=seconds, weight=weight)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Ends what a test let hang."""
    event = threading.Event()
    yield event
    event.set()


def test_match_compares_with_every_answer() -> None:
    rewards = [WeightedReward(name="match", reward=MatchReward())]
    alone = [
        rewarded([episode(token)], rewards=rewards, decode=decode, on_bad=OnBadList())[0].reward for token in (5, 6, 7)
    ]
    assert alone == [1.0, 0.0, 1.0]
    exact = [WeightedReward(name="match", reward=MatchReward(how="exact"))]
    assert rewarded([episode(5)], rewards=exact, decode=decode, on_bad=OnBadList())[0].reward == 0.0


def test_plain_and_async_rewards_are_weighted_and_added_to_what_is_there() -> None:
    async def length(episode: Episode, text: str) -> float:
        await asyncio.sleep(0)
        return len(text)

    rewards = [
        WeightedReward(name="match", reward=MatchReward(), weight=2.0),
        WeightedReward(name="length", reward=Calling(length), weight=-0.5),
    ]
    (done,) = rewarded([episode(5, reward=10.0)], rewards=rewards, decode=decode, on_bad=OnBadList())
    assert done.reward == 10.0 + 2.0 * 1.0 - 0.5 * len("It is Oslo.")
    assert done.info["rewards"] == {"match": 1.0, "length": 11.0}


def test_last_turn_of_the_student_is_judged_and_carries_the_reward() -> None:
    rewards = [WeightedReward(name="match", reward=MatchReward())]
    (done,) = rewarded([turns(reward=(0.5, None, 0.25, None))], rewards=rewards, decode=decode, on_bad=OnBadList())
    assert done.reward == (0.5, None, 1.25, None)


def test_an_episode_in_parts_is_rewarded_once() -> None:
    rewards = [WeightedReward(name="match", reward=MatchReward())]
    parts = [turns(part=1), turns(part=0)]
    done = rewarded([*parts, episode(6)], rewards=rewards, decode=decode, on_bad=OnBadList())
    assert [one.reward for one in done] == [1.0, None, 0.0]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "is nan: return a finite number"),
        (-math.inf, "is -inf"),
        (10**400, "is inf"),
        (None, "is None, a NoneType: return a number"),
        ("1.0", "is '1.0', a str"),
        (torch.tensor(1.0), "a Tensor"),
    ],
)
def test_what_is_no_finite_number_costs_its_episode_alone(value: object, why: str) -> None:
    bad = OnBadList()
    episodes = [episode(5, slot=0), episode(6, slot=1), episode(7, slot=2)]
    done = rewarded(
        episodes, rewards=[weighted(lambda one, _: value if one.slot == 1 else 0.5)], decode=decode, on_bad=bad
    )
    assert [(one.slot, one.reward) for one in done] == [(0, 0.5), (2, 0.5)]
    (error,) = bad.errors
    assert isinstance(error, InvalidEpisodeError)
    assert error.where == "example 0 (episode 0)"
    assert error.why.startswith("its reward mine is ")
    assert why in error.why


@pytest.mark.parametrize("value", [True, np.float32(1.0), np.int64(1), np.bool_(True), 1])
def test_truths_and_numbers_of_numpy_are_numbers(value: object) -> None:
    (done,) = rewarded([episode(5)], rewards=[weighted(lambda *_: value)], decode=decode, on_bad=OnBadList())
    assert done.reward == 1.0
    assert isinstance(done.reward, float)


def test_exceptions_of_every_kind_are_told_and_drop_all_parts() -> None:
    def fails(one: Episode, text: str) -> float:
        if one.slot == 1:
            raise KeyError("lost")
        if one.slot == 4:
            sys.exit(3)
        return 1.0

    bad = OnBadList()
    episodes = [episode(5, slot=0), episode(6, slot=1), turns(part=0), turns(part=1)]
    done = rewarded(episodes, rewards=[weighted(fails)], decode=decode, on_bad=bad)
    assert [one.slot for one in done] == [0]
    assert ["KeyError: 'lost'" in bad.texts[0], "SystemExit: 3" in bad.texts[1]] == [True, True]


def test_one_that_hangs_is_given_up_and_the_rest_is_rewarded(release: threading.Event) -> None:
    def hangs(one: Episode, text: str) -> float:
        if one.slot == 1:
            release.wait()
        return 1.0

    async def sleeps(one: Episode, text: str) -> float:
        if one.slot == 2:
            await asyncio.sleep(3600)
        return 1.0

    async def blocks_its_loop(one: Episode, text: str) -> float:
        if one.slot == 3:
            release.wait()
        return 1.0

    bad = OnBadList()
    episodes = [episode(5, slot=slot) for slot in range(5)]
    rewards = [
        WeightedReward(name=name, reward=Calling(function), timeout_seconds=1.0)
        for name, function in (("hangs", hangs), ("sleeps", sleeps), ("blocks", blocks_its_loop))
    ]
    done = rewarded(episodes, rewards=rewards, decode=decode, on_bad=bad)
    assert [(one.slot, one.reward) for one in done] == [(0, 3.0), (4, 3.0)]
    assert [text.split("reward ")[1].split(" failed: TimeoutError")[0] for text in bad.texts] == [
        "hangs", "sleeps", "blocks"
    ]  # fmt: skip


def test_calls_run_at_once_up_to_the_limit() -> None:
    at_once, most = 0, 0
    lock, barrier = threading.Lock(), threading.Barrier(3)

    def call() -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        barrier.wait(timeout=30)  # passes only where three are here at once
        with lock:
            at_once -= 1
        return 1

    assert call_all([call] * 9, timeout_seconds=60, max_concurrency=3, stop=StopRequest()) == [1] * 9
    assert most == 3


def test_rewards_of_the_settings_are_made_and_checked() -> None:
    (one,) = rewards_of([RewardConfig(kind="match", options={"how": "exact"}, weight=0.5)])
    assert (one.name, one.weight) == ("match", 0.5)
    assert one.reward.reward(episode(7), "Kristiania") == 1.0
    with pytest.raises(InvalidPartError, match=r"rewards\[0\]\.options\.how: Input should be 'starts_with'"):
        rewards_of([RewardConfig(kind="match", options={"how": "roughly"})])
    with pytest.raises(InvalidPartError, match=r"rewards\[0\]\.kind='mtch' is not a reward: write one of match, judge"):
        rewards_of([RewardConfig(kind="mtch")])
    with pytest.raises(InvalidPartError, match="'match' stands there twice"):
        rewards_of([RewardConfig(kind="match")] * 2)


def test_a_class_of_the_users_own_fits_the_seam_plain_or_async() -> None:
    assert REWARD.find(f"{__name__}:PlainReward", key="k") is PlainReward
    assert REWARD.find(f"{__name__}:AsyncReward", key="k") is AsyncReward
    with pytest.raises(InvalidPartError, match="NoReward has no method reward"):
        REWARD.find(f"{__name__}:NoReward", key="k")


class PlainReward:
    def reward(self, episode: Episode, text: str) -> float:
        return 0.0


class AsyncReward:
    async def reward(self, episode: Episode, text: str) -> float:
        return 0.0


class NoReward:
    pass


def test_rewards_of_a_run_reward_a_batch() -> None:
    rewards = rewards_of([RewardConfig(kind="match", weight=0.5)])
    two = rewarded([episode(5), episode(6, slot=1)], rewards=rewards, decode=decode, on_bad=OnBadList())
    assert [one.reward for one in two] == [0.5, 0.0]
    assert rewarded([episode(5)], rewards=(), decode=decode, on_bad=OnBadList()) == [episode(5)]
