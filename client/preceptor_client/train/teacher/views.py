"""Counts the positions of a step by status: how many the teacher scored, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.wire import PositionStatus

from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.episode_index import episode_indices
from preceptor_client.train.teacher.scored import ScoredEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherView:
    """How far the teacher could follow the student; shares are 0 where there is nothing to share."""

    unmapped_mass: float
    """The teacher's probability, among its likeliest tokens, that has no place in the student's vocabulary."""
    scored_share: float
    """Of the positions that were to be scored, the share that the loss can use."""
    num_single_support: int
    """Positions with status OK that it cannot use: fewer than two tokens of their support were left."""
    num_by_status: dict[str, int]
    """Response tokens by status of wire.PositionStatus, lower-case."""

    @property
    def non_finite_share(self) -> float:
        total = sum(self.num_by_status.values())
        return self.num_by_status["non_finite"] / total if total else 0.0


def view_teacher(scored: Sequence[ScoredEpisode]) -> TeacherView:
    """Sums up the statuses of a step."""
    statuses = np.concatenate([np.empty(0, np.uint8), *(one.scores.status_T for one in scored)])
    num_asked = int((statuses != PositionStatus.EXCLUDED).sum())
    num_scored = sum(len(one.scores.positions_N) for one in scored)
    return TeacherView(
        unmapped_mass=_unmapped_mass(scored),
        scored_share=num_scored / num_asked if num_asked else 0.0,
        num_single_support=sum(one.num_single_support for one in scored),
        num_by_status={status.name.lower(): int((statuses == status).sum()) for status in PositionStatus},
    )


REMEDIES = {
    "misaligned": "the student cuts text into other tokens than the teacher would: see teacher.segmentation",
    "special": "special tokens have no counterpart: name one in teacher.special_pairs",
    "unmapped": "tokens have no counterpart in the teacher's vocabulary: take a teacher with a closer tokenizer",
    "beyond_context": "they lie beyond the teacher's context: shorten the prompts or lower rollout.max_new_tokens",
    "non_finite": "the teacher's numbers overflow: look at its dtype",
    "single_support": "hardly any of the teacher's likeliest tokens has a counterpart: raise teacher.top_k, or take a "
    "teacher with a closer tokenizer",
}
"""What to do about positions without a score, by the reason."""


def advice(view: TeacherView) -> str:
    """What most of the positions without a score suffer from, and what to do."""
    numbers = {**view.num_by_status, "single_support": view.num_single_support}
    worst = max(REMEDIES, key=lambda name: numbers[name])
    return f"{numbers[worst]} are {worst}; {REMEDIES[worst]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseView:
    """The student's side of a step."""

    num_responses: int
    """Episodes; one that comes in several parts is one response."""
    mean_response_length: float
    """The student's tokens, end tokens included."""


def view_responses(rollouts: Sequence[Episode]) -> ResponseView:
    """Sums up what the student wrote in a step."""
    num_responses = len(set(episode_indices(rollouts)))
    num_tokens = sum(rollout.num_policy_tokens for rollout in rollouts)
    return ResponseView(
        num_responses=num_responses,
        mean_response_length=num_tokens / num_responses if num_responses else 0.0,
    )


def _unmapped_mass(scored: Sequence[ScoredEpisode]) -> float:
    """The teacher's means are over all positions that it scored."""
    nums = [len(one.scores.positions_N) + one.num_single_support for one in scored]
    total = sum(one.scores.unmapped_mass * num for one, num in zip(scored, nums, strict=True))
    return total / sum(nums) if sum(nums) else 0.0
