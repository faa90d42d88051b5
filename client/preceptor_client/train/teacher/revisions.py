"""Logs when a teacher takes other weights during a run, which is allowed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from preceptor_client.train.teacher.scored import ScoredEpisode

_log = logging.getLogger(__name__)


class Revisions:
    """Follows a teacher from its revision at the start of a run."""

    def __init__(self, first: Mapping[str, str]) -> None:
        """By the names of the teachers in the settings."""
        self._current = dict(first)

    def see(self, scored: Sequence[ScoredEpisode], *, step: int) -> str:
        """The revisions that scored a step, in their order, for its row of metrics; each change is logged once."""
        revisions: list[str] = []
        for one in scored:
            # A run with one teacher has no name for it.
            only = next(iter(self._current), "")
            named = [(teacher.name, teacher.revision) for teacher in one.by_teacher] or [(only, one.revision)]
            for name, revision in named:
                self._see(name, revision, step=step)
                if revision not in revisions:
                    revisions.append(revision)
        return ", ".join(revisions)

    def _see(self, name: str, revision: str, *, step: int) -> None:
        previous = self._current.get(name)
        if revision == previous:
            return
        of = f" teacher={name}" if len(self._current) > 1 else ""
        _log.warning(
            "teacher has other weights: step=%d%s revision=%s previous_revision=%s", step, of, revision, previous
        )
        self._current[name] = revision
