"""Rewards of episodes: the seam for a user's own, the built-in ones, and how a batch is rewarded.

Each reward of each episode is computed in a thread of its own, within a deadline. An episode whose reward fails is left
out; the others go on. Knows nothing of what a reward is used for. Imports no torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pydantic import Field

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.answer_match import Match, is_match
from preceptor_client.train.data.excerpts import excerpt, printable
from preceptor_client.train.errors import InvalidEpisodeError, InvalidPartError
from preceptor_client.train.parts import PartConfig, Seam
from preceptor_client.train.rollout.calls import call_all
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.stop import StopRequest

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad

Decode = Callable[[Sequence[int]], str]
_MAX_WORDS = 300
"""Characters of an error's own words in a message."""


class Reward(Protocol):
    """Says how good an episode is. One class, named in TOML: [[rewards]] kind = "package.module:Name"."""

    def reward(self, episode: Episode, text: str) -> float | Awaitable[float]:
        """A finite number. `text` is what the student wrote in its last turn, without special tokens. A plain method
        or `async def`; called from several threads at once, so it must not change the object without a lock."""
        ...


REWARD: Seam[Reward] = Seam(
    what="a reward",
    protocol=Reward,
    builtins={
        "match": "preceptor_client.train.rollout.rewards:MatchReward",
        "judge": "preceptor_client.train.rollout.judge:Judge",
    },
)


class RewardConfig(PartConfig):
    """One reward of a run; several add up."""

    weight: float = 1.0
    """What it is multiplied by before the rewards are added up."""
    timeout_seconds: float = Field(60.0, gt=0)
    """How long it may take for one episode, which is left out then."""
    max_concurrency: int = Field(32, ge=1)
    """Most episodes that it is asked about at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedReward:
    """A reward and its part in the sum."""

    name: str
    """Of its kind: the key in `Episode.info["rewards"]`."""
    reward: Reward
    weight: float = 1.0
    timeout_seconds: float = 60.0
    max_concurrency: int = 32


class MatchReward:
    """1 where the text matches one of the example's answers, else 0."""

    def __init__(self, how: Match = "contains") -> None:
        """`how` the text must relate to an answer; case counts, white space around either does not."""
        self._how: Match = how

    def reward(self, episode: Episode, text: str) -> float:
        """As `Reward.reward`. Raises ValueError where the example has no answer."""
        if not episode.example.answers:
            raise ValueError(f"{episode.example.name} has no answer to compare with: add one, or use another reward")
        return float(any(is_match(text, expected=answer, match=self._how) for answer in episode.example.answers))


def rewards_of(configs: Sequence[RewardConfig], *, key: str = "rewards") -> tuple[WeightedReward, ...]:
    """The rewards that the settings name. Raises InvalidPartError, which names the key."""
    kinds = [config.kind for config in configs]
    if doubles := [kind for place, kind in enumerate(kinds) if kind in kinds[:place]]:
        raise InvalidPartError(f"{key}: {doubles[0]!r} stands there twice: keep one of them, and give it their weight")
    return tuple(
        WeightedReward(
            name=config.kind,
            reward=REWARD.make(config.kind, config.options, key=f"{key}[{place}].kind"),
            weight=config.weight,
            timeout_seconds=config.timeout_seconds,
            max_concurrency=config.max_concurrency,
        )
        for place, config in enumerate(configs)
    )


def rewarded(
    episodes: Sequence[Episode],
    *,
    rewards: Sequence[WeightedReward],
    decode: Decode,
    on_bad: OnBad,
    stop: StopRequest | None = None,
) -> list[Episode]:
    """The episodes with their rewards. The weighted sum is added to what an episode has already, from its environment
    or from a file: to the number, or to the entry of the last segment that the student wrote. Of an episode in several
    parts the last part is rewarded, so that its rewards count once.

    An episode whose reward is no finite number, raises or is late goes to `on_bad`, and is left out with all its
    parts. TeacherUnavailableError and InvalidPartError are no episode's fault, and are raised."""
    if not rewards:
        return list(episodes)
    last = _last_parts(episodes)
    judged = [episodes[place] for place in last]
    texts = [decode(episode.last_turn_ids) for episode in judged]
    values: list[dict[str, float]] = [{} for _ in judged]
    why_not: dict[int, InvalidEpisodeError] = {}
    for one in rewards:
        left = [index for index in range(len(judged)) if index not in why_not]
        outcomes = call_all(
            [_call(one.reward, judged[index], texts[index]) for index in left],
            timeout_seconds=one.timeout_seconds,
            max_concurrency=one.max_concurrency,
            stop=stop or StopRequest(),
        )
        for index, outcome in zip(left, outcomes, strict=True):
            value = _finite(outcome, of=one, where=judged[index].name)
            if isinstance(value, InvalidEpisodeError):
                why_not[index] = value
            else:
                values[index][one.name] = value
    for index in sorted(why_not):
        on_bad(why_not[index])
    weights = {one.name: one.weight for one in rewards}
    failed = {_key(judged[index]) for index in why_not}
    given = {place: index for index, place in enumerate(last)}
    return [
        _with_reward(episode, values[given[place]], weights=weights) if place in given else episode
        for place, episode in enumerate(episodes)
        if _key(episode) not in failed
    ]


def _key(episode: Episode) -> tuple[int, int]:
    return episode.slot, episode.sample


def _last_parts(episodes: Sequence[Episode]) -> list[int]:
    """Where the last part of each episode stands."""
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, episode in enumerate(episodes):
        places[_key(episode)].append(place)
    return [max(of_one, key=lambda place: episodes[place].part) for of_one in places.values()]


def _call(reward: Reward, episode: Episode, text: str) -> Callable[[], float | Awaitable[float]]:
    return lambda: reward.reward(episode, text)


def _finite(outcome: object, *, of: WeightedReward, where: str) -> float | InvalidEpisodeError:
    """The number, or what is wrong with the episode. Raises what is no episode's fault."""
    if isinstance(outcome, TeacherUnavailableError | InvalidPartError):
        raise outcome
    if isinstance(outcome, BaseException):
        words = printable(f"{type(outcome).__name__}: {outcome}"[:_MAX_WORDS])
        return InvalidEpisodeError(f"its reward {of.name} failed: {words}", where=where)
    if not isinstance(outcome, bool | int | float | np.bool_ | np.integer | np.floating):
        return InvalidEpisodeError(
            f"its reward {of.name} is {excerpt(outcome)}, a {type(outcome).__name__}: return a number", where=where
        )
    try:
        value = float(outcome)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        return InvalidEpisodeError(f"its reward {of.name} is {value}: return a finite number", where=where)
    return value


def _with_reward(episode: Episode, values: Mapping[str, float], *, weights: Mapping[str, float]) -> Episode:
    total = sum(weights[name] * value for name, value in values.items())
    info = {**episode.info, "rewards": dict(values)}
    if not isinstance(episode.reward, tuple):
        return replace(episode, reward=(episode.reward or 0.0) + total, info=info)
    last = max(place for place, segment in enumerate(episode.segments) if segment.is_policy)
    by_segment = list(episode.reward)
    by_segment[last] = (by_segment[last] or 0.0) + total
    return replace(episode, reward=tuple(by_segment), info=info)
