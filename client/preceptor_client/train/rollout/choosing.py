"""Chooses among several responses to one prompt: by reward, by how near they are to the student. Writes none itself."""

# T = tokens of the response, K = likeliest tokens of the student

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.rewards import Decode, WeightedReward, rewarded

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad

_log = logging.getLogger(__name__)

Choose = Literal["all", "best", "most_overlap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A rule by which some of the candidates of each prompt are kept."""

    choose: Choose
    reward: WeightedReward
    min_reward: float | None
    """Candidates below it are not kept."""
    top_k: int
    """Likeliest tokens of the student that count as overlap."""

    def of(self, candidates: Sequence[Episode], *, num: int, decode: Decode, on_bad: OnBad) -> list[Episode]:
        """At most `num` of each slot, the best first; "all" keeps all. Their samples count from 0, and
        `info["choice"]` says why they were kept."""
        if self.choose == "all":
            return list(candidates)
        judged = rewarded(candidates, rewards=[self.reward], decode=decode, on_bad=on_bad)
        own = {(one.slot, one.sample): one for one in candidates}
        chosen: list[Episode] = []
        for slot, of_slot in groupby(judged, key=lambda one: one.slot):
            ranked = sorted(map(self._marked, of_slot), key=lambda pair: (-pair[0], -pair[1]))
            kept = [pair for pair in ranked if self.min_reward is None or pair[0] >= self.min_reward][:num]
            if not kept:
                _log.warning("no candidate is good enough: slot=%d best=%s", slot, ranked[0][0])
            chosen += [
                _renumbered(own[slot, candidate], sample=sample, reward=reward, overlap=overlap)
                for sample, (reward, overlap, candidate) in enumerate(kept)
            ]
        return chosen

    def _marked(self, episode: Episode) -> tuple[float, float, int]:
        overlap = overlap_of(episode, top_k=self.top_k) if self.choose == "most_overlap" else 0.0
        return episode.info["rewards"][self.reward.name], overlap, episode.sample  # type: ignore[index]  # as rewarded


def overlap_of(episode: Episode, *, top_k: int) -> float:
    """The share of the response's tokens that are among the student's `top_k` likeliest, each given what stands before
    it. Raises InvalidPartError where the student's likeliest tokens were not kept."""
    tops_TK = episode.student.top_ids_TK
    if tops_TK is None or tops_TK.shape[1] < top_k:
        kept = 0 if tops_TK is None else tops_TK.shape[1]
        raise InvalidPartError(
            f"rollout.engine_options.choose='most_overlap' needs the student's {top_k} likeliest tokens, and {kept} "
            "are kept: lower rollout.engine_options.top_k, or set objective.support = 'student' and raise teacher.top_k"
        )
    ids_T = np.asarray(episode.response_ids)
    return float((tops_TK[:, :top_k] == ids_T[:, None]).any(axis=1)[episode.is_policy_T].mean())


def _renumbered(episode: Episode, *, sample: int, reward: float, overlap: float) -> Episode:
    choice = {"candidate": episode.sample, "reward": reward, "overlap": overlap}
    return replace(episode, sample=sample, info={**episode.info, "choice": choice})
