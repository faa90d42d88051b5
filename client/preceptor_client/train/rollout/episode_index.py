"""Groups the parts of an episode whose history was rendered again. Reads no tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from preceptor_client.train.rollout.episode import Episode


def episode_indices(parts: Iterable[Episode]) -> list[int]:
    """For each part the number of its episode, counted from 0 in the order of their first parts. A part goes on with
    the last episode of its slot and sample, unless it is a first part."""
    last_of: dict[tuple[int, int], int] = {}
    indices: list[int] = []
    num_episodes = 0
    for part in parts:
        key = (part.slot, part.sample)
        if part.part == 0 or key not in last_of:
            last_of[key] = num_episodes
            num_episodes += 1
        indices.append(last_of[key])
    return indices


def episode_rewards(parts: Sequence[Episode]) -> list[float | None]:
    """For each episode, in the order of `episode_indices`, the sum over its parts; None where it has no reward."""
    rewards: dict[int, float | None] = {}
    for part, index in zip(parts, episode_indices(parts), strict=True):
        before, own = rewards.get(index), part.total_reward
        rewards[index] = before if own is None else own + (before or 0.0)
    return list(rewards.values())
