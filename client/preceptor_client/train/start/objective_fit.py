"""Checks that a run's objective fits its teacher, and warns of its caveats. Imports no torch by itself."""

from __future__ import annotations

from preceptor.wire import SegmentationPolicy

from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig, check_terms, make_weights
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.types import Limits


def check_parts(*, objective: ObjectiveConfig, weights: PartConfig | None, credit: CreditConfig | None) -> None:
    """Raises InvalidPartError, which names the key, where a part that the settings name cannot be made; ValueError
    where they leave nothing to learn from."""
    check_terms(objective, credit)
    objective.make()
    objective.make_support()
    objective.make_strengths()
    make_weights(weights)
    if credit is not None:
        credit.make()


def check_objective(agreement: Agreement, limits: Limits, *, objective: ObjectiveConfig, student: Student) -> None:
    """Raises UnsuitableTeacherError where the teacher cannot answer what the objective asks for."""
    name = agreement.teacher.name
    if objective.make().is_over_whole_vocabulary:
        size = min(student.vocabulary_size, agreement.teacher.vocabulary_size)
        if limits.max_top_k < size:
            raise UnsuitableTeacherError(
                f"objective.kind={objective.kind} asks for all {size} tokens at every position, and the server's limit "
                f"is {limits.max_top_k}: start it with --limits.max-top-k={size}, or set objective.kind=tail_bucket"
            )
        if not agreement.is_one_to_one:
            raise UnsuitableTeacherError(
                f"objective.kind={objective.kind} needs ids that correspond one to one, and those of teacher {name!r} "
                "do not: set objective.kind=lsm"
            )
    if objective.needs_student_tokens:
        if not agreement.teacher.capabilities.candidates:
            raise UnsuitableTeacherError(
                f"objective.support={objective.support} needs a teacher that scores the student's tokens, and "
                f"{name!r} does not: set objective.support=teacher"
            )
        if not can_name_tokens(agreement):
            raise UnsuitableTeacherError(
                f"objective.support={objective.support} needs ids that correspond one to one and a segmentation of "
                f"as_is, mask or paper; with teacher {name!r} it is {agreement.policy.name.lower()}: set "
                "objective.support=teacher"
            )


def can_name_tokens(agreement: Agreement) -> bool:
    """Whether the teacher scores the student's tokens by their ids: what supports with the student's tokens need."""
    has_ids = agreement.is_one_to_one and agreement.policy is not SegmentationPolicy.CANONICAL
    return has_ids and agreement.teacher.capabilities.candidates


def objective_warnings(
    objective: ObjectiveConfig, *, rollout: RolloutConfig, temperature: float, credit: CreditConfig | None = None
) -> tuple[str, ...]:
    """What is allowed and may surprise. `temperature` is that of the loss."""
    made, key = objective.make(), f"objective.kind={objective.kind}"
    warnings: list[str] = []
    if made.is_estimate and (rollout.top_p < 1 or rollout.temperature != temperature):
        warnings.append(
            f"{key} estimates a sum over tokens drawn from the student's whole distribution: with "
            f"rollout.top_p={rollout.top_p}, rollout.temperature={rollout.temperature} and "
            f"teacher.temperature={temperature} its gradient is biased; set top_p=1 and equal temperatures, or take a "
            "loss that does not sample, such as lsm"
        )
    if made.caveat:
        warnings.append(f"{key} {made.caveat}")
    is_compared = credit is not None and getattr(credit.make(), "compares_responses", False)
    if credit is not None and is_compared and rollout.responses_per_prompt == 1:
        warnings.append(
            f"credit.kind={credit.kind} compares the responses to one prompt, and there is one: its credit is 0 "
            "everywhere; raise rollout.responses_per_prompt"
        )
    return tuple(warnings)
