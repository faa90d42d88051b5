"""Derives the request to a teacher from the objective: the support, and how many tokens of either side."""

from __future__ import annotations

from dataclasses import dataclass

from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.teacher.support import SupportRule


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """For one run."""

    support: SupportRule
    min_support: int
    """Tokens that a position's support must hold; positions with fewer are left out."""
    top_k: int
    """Teacher tokens per position."""
    num_student_tokens: int
    """Student tokens per position, which the teacher is asked about by their ids; 0 for none."""


def asking_of(objective: ObjectiveConfig, *, top_k: int, num_common: int, is_measurement: bool = False) -> Asking:
    """`top_k` is teacher.top_k, `num_common` the size of the smaller vocabulary. With objective.coefficient=0 positions
    count without a support too, but for the measurements of the objective's loss."""
    made, support = objective.make(), objective.make_support()
    return Asking(
        support=support,
        min_support=made.min_support if objective.coefficient or is_measurement else 0,
        top_k=num_common if made.is_over_whole_vocabulary else top_k,
        num_student_tokens=top_k if support.needs_student_tokens else 0,
    )
