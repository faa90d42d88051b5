"""Computes group-relative advantages: the reward of a response against those of the same prompt's other responses."""

# N = scored positions of an episode, S = its segments

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preceptor_client.train.errors import InvalidWeightsError
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.reduction import WeightArray
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.teacher.scored import ScoredEpisode

_Rewards = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Rollout:
    """The parts of one episode, in order, with what their segments earned."""

    parts: list[Episode] = field(default_factory=list)
    rewards: list[_Rewards] = field(default_factory=list)
    """One array [S] per part; NaN where a segment has no reward."""

    @property
    def given(self) -> _Rewards:
        """All rewards of the episode, in order."""
        rewards: _Rewards = np.concatenate(self.rewards)
        return rewards[~np.isnan(rewards)]


class Grpo:
    """Advantage of every token of a response, by its reward r among the responses to its prompt:

        A = (r - mean of r) / (standard deviation of r + epsilon)

    arXiv 2402.03300 (DeepSeekMath), section 4.1.2, with the sample deviation (of n - 1) and the epsilon of verl's
    `compute_grpo_outcome_advantage`; without `scale` nothing is divided (arXiv 2503.20783, Dr. GRPO). A response alone
    has advantage 0. The rewards of an episode's parts add up, and its parts share the advantage. Responses that the
    teacher refused are not among the group. `per_segment` is section 4.1.3: every
    reward of every segment of the group is normalised by the mean and deviation of them all, and a token's advantage is
    the sum over the rewards of its segment and later ones (return-to-go); one reward for a whole part then counts as
    that of its last segment.
    """

    compares_responses = True

    def __init__(self, *, scale: bool = True, epsilon: float = 1e-6, per_segment: bool = False) -> None:
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon} must be above 0")
        self._scale = scale
        self._epsilon = epsilon
        self._per_segment = per_segment

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[WeightArray]:
        del at
        groups = _groups(one.episode for one in scored)
        advantages: dict[tuple[int, int, int], _Rewards] = {}
        for slot, rollouts in groups.items():
            for (sample, rollout), columns in zip(rollouts.items(), self._advantages(rollouts), strict=True):
                for part, advantage_S in zip(rollout.parts, columns, strict=True):
                    advantages[slot, sample, part.part] = advantage_S
        return [_at_positions(one, advantages[_place(one.episode)]) for one in scored]

    def _advantages(self, rollouts: dict[int, _Rollout]) -> list[list[_Rewards]]:
        """For every episode of a group, for every part, the advantage of each segment."""
        if len(rollouts) < 2:
            return [[np.zeros(len(part.segments)) for part in one.parts] for one in rollouts.values()]
        if not self._per_segment:
            totals = np.array([_total(one) for one in rollouts.values()])
            normalised = self._normalised(totals, among=totals)
            return [
                [np.full(len(part.segments), advantage) for part in one.parts]
                for one, advantage in zip(rollouts.values(), normalised, strict=True)
            ]
        everything = np.concatenate([one.given for one in rollouts.values()])
        return [self._returns(one, among=everything) for one in rollouts.values()]

    def _returns(self, one: _Rollout, *, among: _Rewards) -> list[_Rewards]:
        """Sums of normalised rewards from each segment to the end of the episode, cut into its parts."""
        rewards = np.concatenate(one.rewards)
        normalised = np.where(np.isnan(rewards), 0.0, self._normalised(rewards, among=among))
        ends = np.cumsum([len(part.segments) for part in one.parts])[:-1]
        return np.split(np.cumsum(normalised[::-1])[::-1], ends)

    def _normalised(self, rewards: _Rewards, *, among: _Rewards) -> _Rewards:
        centred: _Rewards = rewards - among.mean()
        if not self._scale:
            return centred
        deviation = float(among.std(ddof=1)) if len(among) > 1 else 0.0
        return centred / (deviation + self._epsilon)


def _groups(episodes: Iterable[Episode]) -> dict[int, dict[int, _Rollout]]:
    """The rollouts of each slot, by sample. Raises InvalidWeightsError where one has no reward."""
    groups: dict[int, dict[int, _Rollout]] = {}
    for episode in sorted(episodes, key=_place):
        rollout = groups.setdefault(episode.slot, {}).setdefault(episode.sample, _Rollout())
        rollout.parts.append(episode)
    for rollouts in groups.values():
        for rollout in rollouts.values():
            rollout.rewards = _rewards(rollout.parts)
    return groups


def _rewards(parts: Sequence[Episode]) -> list[_Rewards]:
    """What each segment of each part earned; one number for a whole part is its last segment's."""
    rewards = [np.full(len(part.segments), np.nan) for part in parts]
    for part, reward_S in zip(parts, rewards, strict=True):
        if isinstance(part.reward, tuple):
            reward_S[:] = [np.nan if reward is None else reward for reward in part.reward]
        elif part.reward is not None:
            reward_S[-1] = part.reward
    if all(np.isnan(reward_S).all() for reward_S in rewards):
        task = f" of task {parts[0].task!r}" if parts[0].task else ""
        raise InvalidWeightsError(
            f"credit.kind=grpo needs a reward for every response, and {parts[0].name}{task} has none: give its task an "
            "environment or rewards, or leave credit.kind out"
        )
    return rewards


def _total(rollout: _Rollout) -> float:
    return float(rollout.given.sum())


def _place(episode: Episode) -> tuple[int, int, int]:
    return episode.slot, episode.sample, episode.part


def _at_positions(one: ScoredEpisode, advantage_S: _Rewards) -> WeightArray:
    """The advantage of the segment that each scored token belongs to."""
    lengths = [len(segment.ids) for segment in one.episode.segments]
    advantage_T: WeightArray = np.repeat(advantage_S, lengths)
    return advantage_T[one.scores.positions_N]
