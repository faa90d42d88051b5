"""Whether this process lives, and whether it can be asked: what the probes are told. Read from any thread."""

from __future__ import annotations

from collections.abc import Mapping


class Health:
    """Ready once a teacher serves, and until the server drains."""

    def __init__(self) -> None:
        self._teachers: dict[str, bool] = {}
        self._is_draining = False

    def set_serving(self, teacher: str, is_serving: bool) -> None:
        """A teacher was loaded, died, came back."""
        self._teachers[teacher] = is_serving

    def forget(self, teacher: str) -> None:
        """A teacher is hosted no more."""
        self._teachers.pop(teacher, None)

    def drain(self) -> None:
        """Nothing new is taken from here on."""
        self._is_draining = True

    @property
    def teachers(self) -> Mapping[str, bool]:
        """Whether each serves; none does while the server drains."""
        return {name: is_serving and not self._is_draining for name, is_serving in list(self._teachers.items())}

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Whether at least one teacher serves: while one of several is replaced, the others can be asked."""
        return any(self.teachers.values())
