"""Whether two servers host the same teacher, by what they say of themselves. Knows nothing of how they were asked."""

from __future__ import annotations

from dataclasses import dataclass, fields

from preceptor_client.types import Limits, ServerInfo, TeacherInfo

_MAY_DIFFER = frozenset({"engine", "model", "device", "tokenizer_json"})
"""Where and by what a teacher runs: the path of its folder, its device. Its weights are compared by their revision, its
tokenizer by `tokenizer_id`."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field, and what either server says of it."""

    field: str
    value: object
    other_value: object


def difference(one: ServerInfo, other: ServerInfo) -> Difference | None:
    """The first field in which they differ; None where they host the same teachers."""
    names, other_names = ([teacher.name for teacher in info.teachers] for info in (one, other))
    if names != other_names:
        return Difference("teachers", names, other_names)
    for teacher, its_twin in zip(one.teachers, other.teachers, strict=True):
        if found := _first_difference(teacher, its_twin, path=f"teachers[{teacher.name}]."):
            return found
    return _first_difference(one.limits, other.limits, path="limits.")


def _first_difference(one: TeacherInfo | Limits, other: TeacherInfo | Limits, *, path: str) -> Difference | None:
    for field in fields(one):
        value, its_value = getattr(one, field.name), getattr(other, field.name)
        if field.name not in _MAY_DIFFER and value != its_value:
            return Difference(path + field.name, value, its_value)
    return None
