"""Joins the parts and turns of each episode of a step into one response. Knows nothing of teachers.

Positions and lengths count the student's own tokens: what an environment wrote between them is left out.
"""

# T = tokens of one part, P = parts of the step, R = its responses

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preceptor_client.train.instruments.repetition import repeated_ngrams
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.episode_index import episode_indices, episode_rewards

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Responses:
    """A response is what the student wrote in one episode, over all of its turns and parts."""

    episodes: Sequence[Episode]
    """The parts, in their order."""
    index_P: _Ints
    """Which response each part belongs to."""
    num_tokens_before_P: _Ints
    """The student's tokens in the earlier parts of the same response."""
    num_turns_before_P: _Ints
    lengths_R: _Ints
    """The student's tokens, end tokens included."""
    num_turns_R: _Ints
    last_part_R: _Ints
    """Index of the part that ends the response."""

    def positions_T(self, part: int) -> _Ints:
        """For each token of a part how many tokens of the student precede it in the response."""
        is_own_T = self.episodes[part].is_policy_T.astype(np.int64)
        positions_T: _Ints = np.cumsum(is_own_T) - is_own_T + self.num_tokens_before_P[part]
        return positions_T

    def turns_T(self, part: int) -> _Ints:
        """For each token of a part its turn in the response, from 0."""
        turns_T: _Ints = self.episodes[part].turns_T + self.num_turns_before_P[part]
        return turns_T

    def is_repeated_TP(self) -> list[_Bools]:
        """For each part whether a token completes an n-gram of the student's that stood before in the response."""
        seen: list[set[tuple[int, ...]]] = [set() for _ in self.lengths_R]
        return [
            repeated_ngrams(one.response_ids, is_own_T=one.is_policy_T, seen=seen[index])
            for one, index in zip(self.episodes, self.index_P, strict=True)
        ]

    def last_own_position(self, response: int) -> int:
        """Index of the student's last token in the last part; -1 where it wrote none there."""
        own = np.flatnonzero(self.episodes[self.last_part_R[response]].is_policy_T)
        return int(own[-1]) if len(own) else -1

    def rewards_R(self) -> npt.NDArray[np.float64]:
        """Of whole episodes, the sum over their parts; NaN without a reward."""
        return np.array([np.nan if one is None else one for one in episode_rewards(self.episodes)], np.float64)


def responses_of(episodes: Sequence[Episode]) -> Responses:
    """Puts parts together."""
    index_P = np.array(episode_indices(episodes), np.int64)
    num_responses = int(index_P.max()) + 1 if len(index_P) else 0
    lengths_R, num_turns_R, last_part_R = (np.zeros(num_responses, np.int64) for _ in range(3))
    num_tokens_before_P, num_turns_before_P = np.zeros_like(index_P), np.zeros_like(index_P)
    for part, (one, index) in enumerate(zip(episodes, index_P, strict=True)):
        num_tokens_before_P[part], num_turns_before_P[part] = lengths_R[index], num_turns_R[index]
        lengths_R[index] += one.num_policy_tokens
        num_turns_R[index] += int(one.turns_T[-1]) + 1
        last_part_R[index] = part
    return Responses(
        episodes=episodes,
        index_P=index_P,
        num_tokens_before_P=num_tokens_before_P,
        num_turns_before_P=num_turns_before_P,
        lengths_R=lengths_R,
        num_turns_R=num_turns_R,
        last_part_R=last_part_R,
    )
