"""Notices when the teacher takes other weights during a run: nothing wrong, and to be known. Judges nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from preceptor_client.train.teacher.scored import ScoredEpisode

_log = logging.getLogger(__name__)


class Revisions:
    """Follows a teacher from its revision at the start of a run."""

    def __init__(self, first: str) -> None:
        self._current = first

    def see(self, scored: Sequence[ScoredEpisode], *, step: int) -> str:
        """The revisions that scored a step, in their order, for its row of metrics; each change is logged once."""
        revisions = list(dict.fromkeys(one.revision for one in scored))
        for revision in revisions:
            if revision != self._current:
                _log.warning(
                    "teacher has other weights: step=%d revision=%s previous_revision=%s", step, revision, self._current
                )
                self._current = revision
        return ", ".join(revisions)
