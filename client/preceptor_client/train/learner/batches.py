"""Cuts the scored episodes of a step into micro-batches, and joins their columns again."""

# N = scored positions of a batch

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from preceptor_client.train.teacher.scored import ScoredEpisode


def micro_batches(scored: Sequence[ScoredEpisode], *, size: int) -> Iterator[list[int]]:
    """Indices of the rollouts that have a score, a few at a time."""
    eligible = [index for index, one in enumerate(scored) if len(one.scores.positions_N)]
    # Alike lengths side by side waste the least padding; the sort is stable, so a resumed run sees the same.
    eligible.sort(key=lambda index: len(scored[index].episode.prompt_ids) + len(scored[index].episode.response_ids))
    for start in range(0, len(eligible), size):
        yield eligible[start : start + size]


def split_by_rollout(
    column_N: npt.NDArray[np.float32], batch: Sequence[ScoredEpisode]
) -> list[npt.NDArray[np.float32]]:
    """Cuts a column over all positions of a batch into those of its rollouts."""
    return np.split(column_N, np.cumsum([len(one.scores.positions_N) for one in batch])[:-1])
