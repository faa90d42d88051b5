"""What one step was like, in plain numbers: from the rollouts and the teacher's columns. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.wire import PositionStatus

from preceptor_client.train.rollout import Rollout
from preceptor_client.train.scoring import ScoredRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherView:
    """The teacher's side of a step; means are over the scored positions, 0 where there are none."""

    teacher_mass: float
    """The teacher's probability inside its top K."""
    outside_share: float
    """Share of the student's tokens that are not in the teacher's support."""
    teacher_entropy: float
    """Nats."""
    teacher_logprob: float
    """Mean log-probability that the teacher gives the student's tokens."""
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


def view_teacher(scored: Sequence[ScoredRollout]) -> TeacherView:
    """Sums up the teacher's columns of a step."""
    statuses = np.concatenate([one.scores.status_T for one in scored])
    sampled_N = np.concatenate(
        [np.asarray(one.rollout.response_ids, np.int64)[one.scores.positions_N] for one in scored]
    )
    supports_NK = np.concatenate([one.scores.support_ids_NK for one in scored])
    # An entry of -inf fills a row up, and is outside the support.
    is_inside_NK = ~np.isneginf(np.concatenate([one.scores.support_logprobs_NK for one in scored]))
    num_asked = int((statuses != PositionStatus.EXCLUDED).sum())
    return TeacherView(
        teacher_mass=_mean(-np.expm1(np.concatenate([one.scores.log_tail_mass_N for one in scored], dtype=np.float64))),
        outside_share=_mean(~((supports_NK == sampled_N[:, None]) & is_inside_NK).any(axis=1)),
        teacher_entropy=_mean(np.concatenate([one.scores.entropies_N for one in scored])),
        teacher_logprob=_mean(np.concatenate([one.scores.sampled_logprobs_N for one in scored])),
        unmapped_mass=_unmapped_mass(scored),
        scored_share=len(sampled_N) / num_asked if num_asked else 0.0,
        num_single_support=sum(one.num_single_support for one in scored),
        num_by_status={status.name.lower(): int((statuses == status).sum()) for status in PositionStatus},
    )


_REMEDIES = {
    "misaligned": "the student cuts text into other tokens than the teacher would: see teacher.segmentation",
    "special": "special tokens have no counterpart: name one in teacher.special_pairs",
    "unmapped": "tokens have no counterpart in the teacher's vocabulary: take a teacher with a closer tokenizer",
    "beyond_context": "they lie beyond the teacher's context: shorten the prompts or lower rollout.max_new_tokens",
    "non_finite": "the teacher's numbers overflow: look at its dtype",
    "single_support": "hardly any of the teacher's likeliest tokens has a counterpart: raise teacher.top_k, or take a "
    "teacher with a closer tokenizer",
}


def advice(view: TeacherView) -> str:
    """What most of the positions without a score suffer from, and what to do."""
    numbers = {**view.num_by_status, "single_support": view.num_single_support}
    worst = max(_REMEDIES, key=lambda name: numbers[name])
    return f"{numbers[worst]} are {worst}; {_REMEDIES[worst]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseView:
    """The student's side of a step."""

    num_responses: int
    mean_response_length: float
    """Tokens, the end token included."""
    truncated_share: float
    """Share of responses that were cut at rollout.max_new_tokens."""


def view_responses(rollouts: Sequence[Rollout]) -> ResponseView:
    """Sums up what the student wrote in a step."""
    return ResponseView(
        num_responses=len(rollouts),
        mean_response_length=_mean(np.array([len(rollout.response_ids) for rollout in rollouts])),
        truncated_share=_mean(np.array([rollout.finish_reason == "length" for rollout in rollouts])),
    )


def _unmapped_mass(scored: Sequence[ScoredRollout]) -> float:
    """The teacher's means are over all positions that it scored."""
    nums = [len(one.scores.positions_N) + one.num_single_support for one in scored]
    total = sum(one.scores.unmapped_mass * num for one, num in zip(scored, nums, strict=True))
    return total / sum(nums) if sum(nums) else 0.0


def _mean(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> float:
    return float(values.astype(np.float64).mean()) if values.size else 0.0
