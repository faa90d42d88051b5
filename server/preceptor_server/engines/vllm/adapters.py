"""LoRA adapters by name, each version under an id and a name of its own: vLLM's caches must never mix two of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preceptor_server.engines.vllm.revision import revision_of_folder


@dataclass(eq=False, slots=True, kw_only=True)
class Adapter:
    """One version of an adapter, and how many requests are in flight with it."""

    name: str
    folder: Path
    number: int
    revision: str
    num_in_flight: int = 0

    @property
    def unique_name(self) -> str:
        """vLLM keys cached prefixes by it."""
        return f"{self.name}@{self.number}"


@dataclass(eq=False, slots=True)
class Adapters:
    """The current version of each name. Numbers are never used twice."""

    _current: dict[str, Adapter] = field(default_factory=dict)
    _last_number: int = 0

    def draft(self, name: str, folder: Path) -> Adapter:
        """A new version, which nobody uses until `publish`."""
        self._last_number += 1
        revision = revision_of_folder(folder, uses="adapter")
        return Adapter(name=name, folder=folder, number=self._last_number, revision=revision)

    def publish(self, adapter: Adapter) -> Adapter | None:
        """Returns the version that it replaces."""
        replaced = self._current.get(adapter.name)
        self._current[adapter.name] = adapter
        return replaced

    def withdraw(self, name: str) -> Adapter:
        return self._current.pop(name)

    def get(self, name: str) -> Adapter:
        return self._current[name]

    def __contains__(self, name: object) -> bool:
        return name in self._current

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._current.values())

    def revisions(self, *, base: str) -> dict[str, str]:
        """What answers say: an adapter means nothing without the weights that it adapts."""
        return {name: f"{base}+{adapter.revision}" for name, adapter in self._current.items()}

    def clear(self) -> None:
        """Forgets all, when the process that held them is gone."""
        self._current.clear()
