"""Counts the groups that teachers failed on, and says when they are too many. Asks nobody, and stops nothing."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preceptor_client.errors import GroupFailedError
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.rollout.episode import Episode

NUM_RECENT_GROUPS = 200
"""The share of failed groups is that of the last so many."""
MIN_FAILED_GROUPS = 5
"""Fewer stop no run, unless its limit is 0: one bad group among the first ten says little of a teacher."""
_FILE = "recent_groups.json"
"""Of a checkpoint: how the last groups ended, the oldest first; 1 is a failure."""

GroupKey = tuple[int, tuple[int, ...]]


def group_of(episode: Episode) -> GroupKey:
    """Episodes of one slot and one prompt are one group: a teacher scores them in one request."""
    return episode.slot, episode.prompt_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedGroup:
    """A group that a teacher failed on; its episodes are scored by nobody."""

    key: GroupKey
    example: str
    """File and line, such as "train.jsonl:17"."""
    teacher: str
    """In the settings."""
    error: GroupFailedError

    def __str__(self) -> str:
        return f"{self.example}: teacher {self.teacher!r} failed on its group: {self.error}"


OnFailed = Callable[[FailedGroup], None]
"""Takes a group that a teacher failed on; the rest goes on without its episodes."""


class GroupCount:
    """The groups of one step or measurement. A group counts as failed once, however many teachers failed on it."""

    def __init__(self) -> None:
        self._failed: dict[GroupKey, FailedGroup] = {}
        self._asked: dict[GroupKey, None] = {}

    def add(self, episodes: Sequence[Episode]) -> None:
        """Counts the groups of which something is to be scored."""
        self._asked |= {group_of(one): None for one in episodes if one.score_mask_T.any()}

    def fail(self, group: FailedGroup) -> None:
        """An `OnFailed`."""
        self._failed.setdefault(group.key, group)

    @property
    def failed(self) -> list[FailedGroup]:
        """In the order in which they were found."""
        return [*self._failed.values()]

    @property
    def outcomes(self) -> list[bool]:
        """Whether each group failed, in the order in which they were asked about."""
        return [key in self._failed for key in self._asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureLimit:
    """How large a share of the groups may fail."""

    max_share: float

    def excess(self, outcomes: Sequence[bool]) -> str:
        """What is too much, in words that name the setting; empty while it is within the limit."""
        num_failed = sum(outcomes)
        is_enough = num_failed >= (MIN_FAILED_GROUPS if self.max_share else 1)
        if not is_enough or num_failed <= self.max_share * len(outcomes):
            return ""
        return (
            f"teachers failed on {num_failed} of the last {len(outcomes)} group(s), more than "
            f"run.max_failed_share={self.max_share}"
        )


class RecentGroups:
    """How the last groups of a run ended; part of its checkpoints, so that a resumed run stops where it would have."""

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=NUM_RECENT_GROUPS)

    def with_step(self, outcomes: Sequence[bool]) -> list[bool]:
        """As they would be after a step with these outcomes."""
        return [*self._outcomes, *outcomes][-NUM_RECENT_GROUPS:]

    def add(self, outcomes: Sequence[bool]) -> None:
        """Those of a step that is done."""
        self._outcomes.extend(outcomes)

    def save(self, checkpoint: Path) -> None:
        """Into a checkpoint that is being written."""
        (checkpoint / _FILE).write_text(json.dumps([int(one) for one in self._outcomes]) + "\n", encoding="utf-8")

    def load(self, checkpoint: Path) -> None:
        """From a checkpoint; one that holds nothing of them was written when none had failed."""
        path = checkpoint / _FILE
        if not path.is_file():
            return
        try:
            self._outcomes.extend(bool(int(one)) for one in json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise RunDirectoryError(f"{path} cannot be read: {error!r}") from error
