"""The teachers that this process hosts, by name: finds one for a tenant, and replaces one while the others serve."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from preceptor_server.errors import EngineUnavailableError, InvalidRequestError, ServerError, UnknownTeacherError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.tenants.rights import require_teacher, teacher_not_allowed
from preceptor_server.tenants.tenant import Tenant

_MAX_SHOWN_NAME = 128
_MAX_SHOWN_TEACHERS = 16
_LOADING_SECONDS = 2.0
"""When to ask again while a teacher is loaded."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Place:
    """A teacher in the map, and how many calls use it."""

    teacher: HostedTeacher
    num_calls: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.unused.set()


class Teachers:
    """Which teachers can be asked. Callers that hold one keep it until their call ends, whatever replaces it."""

    def __init__(self, teachers: Sequence[HostedTeacher] = ()) -> None:
        self._places = {teacher.name: _Place(teacher=teacher) for teacher in teachers}
        self._expected: frozenset[str] = frozenset()
        self._leaving: list[_Place] = []
        """Taken out or replaced, and perhaps still in use."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of those that can be asked."""
        return tuple(sorted(self._places))

    @property
    def hosted(self) -> tuple[HostedTeacher, ...]:
        """By name."""
        return tuple(self._places[name].teacher for name in self.names)

    def expect(self, names: Sequence[str]) -> None:
        """Names of teachers that are being loaded: asking for one is told to come back, not that it does not exist."""
        self._expected = frozenset(names)

    @property
    def leaving(self) -> tuple[HostedTeacher, ...]:
        """Taken out or replaced, and still in use."""
        return tuple(place.teacher for place in self._leaving)

    def allowed(self, tenant: Tenant) -> tuple[HostedTeacher, ...]:
        """Those that a tenant may use, by name."""
        return tuple(one for one in self.hosted if tenant.teachers is None or one.name in tenant.teachers)

    def get(self, name: str) -> HostedTeacher | None:
        """The teacher of that name, for whoever does not ask it for anything."""
        place = self._places.get(name)
        return place.teacher if place else None

    def find(self, name: str, *, tenant: Tenant) -> HostedTeacher:
        """The teacher of that name; empty finds the only one that the tenant may use.

        Raises UnknownTeacherError, ForbiddenError, or EngineUnavailableError while it is being loaded.
        """
        return self._place_of(name, tenant).teacher

    @contextmanager
    def use(self, name: str, *, tenant: Tenant) -> Iterator[HostedTeacher]:
        """As `find`, for the time of a call: a replaced teacher is closed after the last."""
        place = self._place_of(name, tenant)
        place.num_calls += 1
        place.unused.clear()
        try:
            yield place.teacher
        finally:
            place.num_calls -= 1
            if not place.num_calls:
                place.unused.set()

    def put(self, teacher: HostedTeacher) -> HostedTeacher | None:
        """New calls go to it from now on. Returns the teacher of that name before, which may still be in use."""
        before = self._places.get(teacher.name)
        self._places[teacher.name] = _Place(teacher=teacher)
        self._expected -= {teacher.name}
        if before is not None:
            self._leaving.append(before)
        return before.teacher if before else None

    def take(self, name: str) -> HostedTeacher | None:
        """New calls do not find it from now on."""
        place = self._places.pop(name, None)
        if place is not None:
            self._leaving.append(place)
        return place.teacher if place else None

    async def unused(self, teacher: HostedTeacher) -> None:
        """Returns once no call uses a teacher that was taken out or replaced."""
        for place in [one for one in self._leaving if one.teacher is teacher]:
            await place.unused.wait()
            self._leaving.remove(place)

    def abandon(self) -> None:
        """Calls of teachers that are leaving are waited for no longer."""
        for place in self._leaving:
            place.unused.set()

    def _place_of(self, name: str, tenant: Tenant) -> _Place:
        allowed = [one.name for one in self.allowed(tenant)]
        if not name and len(allowed) == 1:
            return self._places[allowed[0]]
        if not name:
            raise self._without_a_name(allowed, tenant)
        require_teacher(tenant, name)
        if name in self._places:
            return self._places[name]
        if name in self._expected:
            raise _loading()
        raise UnknownTeacherError(
            "teacher",
            f"{name[:_MAX_SHOWN_NAME]!r} is not hosted here: ask for {_shown(allowed)}",
            reason="UNKNOWN_TEACHER",
        )

    def _without_a_name(self, allowed: Sequence[str], tenant: Tenant) -> ServerError:
        """Why an empty name finds no teacher. A tenant is told nothing of teachers that it may not use."""
        if allowed:
            return InvalidRequestError("teacher", f"is empty, and there are several: {_shown(allowed)}")
        if self._expected if tenant.teachers is None else self._expected & tenant.teachers:
            return _loading()
        if tenant.teachers is not None:
            return teacher_not_allowed(tenant, "")
        return InvalidRequestError("teacher", "is empty, and this server hosts none")


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_MAX_SHOWN_TEACHERS]))
    more = f", and {len(names) - _MAX_SHOWN_TEACHERS} more" if len(names) > _MAX_SHOWN_TEACHERS else ""
    return f"{shown}{more}" if names else "another server: this one hosts none for this caller"


def _loading() -> EngineUnavailableError:
    return EngineUnavailableError("the model is being loaded", retry_after_seconds=_LOADING_SECONDS)
