"""Writes every episode of a run to episodes.jsonl, which the engine "jsonl" reads. Knows nothing of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from preceptor_client.train.data.step_lines import StepLines
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.episode_rows import episode_row

EPISODES_FILE = "episodes.jsonl"


class EpisodeLog:
    """Writes episodes as they come. Opened at a step, it drops every one after it, so that a resumed run has no
    doubles."""

    def __init__(self, directory: Path, *, step: int) -> None:
        self._lines = StepLines(directory / EPISODES_FILE, step=step, what="an episode")
        # They are many, and nobody reads them here.
        self._lines.kept.clear()

    def write(self, step: int, episodes: Sequence[Episode]) -> None:
        """Appends the episodes of a step. They are in the file when this returns."""
        self._lines.write([episode_row(episode, step=step) for episode in episodes])

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
