"""Checks that the teachers of one task can be combined. Asks for their limits, and scores nothing."""

from __future__ import annotations

from collections.abc import Mapping

from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.start.objective_fit import can_name_tokens
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.scorer import Scorer


def check_ensemble(task: Task, agreements: Mapping[str, Agreement], *, scorers: Mapping[str, Scorer]) -> None:
    """Raises UnsuitableTeacherError where they cannot be mixed: ids that do not stand for each other, a teacher that
    scores no given ids, or too many of them."""
    if len(agreements) == 1 or task.combine != "mixture":
        return
    key, separate = task.key("combine"), "set it to divergences, which asks each for a support of its own"
    for name, agreement in agreements.items():
        if not can_name_tokens(agreement):
            raise UnsuitableTeacherError(
                f"{key}=mixture asks every teacher about the same ids, and those of the student and of teacher "
                f"{name!r} do not correspond one to one, or it scores no given ids (vocabularies: "
                f"{agreement.registration.report.relation.name.lower()}): {separate}, or leave {name!r} out"
            )
    num_ids = task.teacher.top_k + task.num_student_tokens
    for name in list(agreements)[1:]:
        largest = scorers[name].info().limits.max_top_k
        if num_ids > largest:
            raise UnsuitableTeacherError(
                f"{key}=mixture asks teacher {name!r} about {num_ids} ids at each position, and its server's limit is "
                f"{largest}: lower {task.key('teacher.top_k')}, or {separate}"
            )
