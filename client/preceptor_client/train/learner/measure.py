"""Measures what needs the student's whole distribution: its mass in the teacher's top K, and the overlap of both.

Measured at some of the positions, spread evenly, so that it costs little however long the responses are.
"""

# N = positions of a batch, M = those of them that are measured, K = support size, V = vocabulary

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from preceptor_client.train.learner.batches import micro_batches, split_by_rollout
from preceptor_client.train.learner.columns import FloatColumn, StudentColumns, unmeasured
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

MAX_POSITIONS = 64
"""Positions of a step that are measured: the standard error of a mean share is at most 0.0625 then, and the cost 2 % of
a step of the demo (bench/train_step.py)."""
_GOLDEN = (5**0.5 - 1) / 2


class StudentMeasure:
    """Measures one step's positions, batch by batch."""

    def __init__(
        self,
        scored: Sequence[ScoredEpisode],
        *,
        temperature: float,
        max_positions: int = MAX_POSITIONS,
    ) -> None:
        """`temperature` is that of the loss."""
        self._scored = scored
        self._temperature = temperature
        self._share = max_positions / max(1, sum(len(one.scores.positions_N) for one in scored))
        self._columns: dict[int, StudentColumns] = {}

    def rows_of(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """The positions of these rollouts at which all of the student's logits are wanted."""
        num_rows = self._num_rows(indices)
        return spread_rows(num_rows, num_wanted=int(np.ceil(self._share * num_rows)))

    @torch.no_grad()
    def add(self, indices: Sequence[int], logits_MV: torch.Tensor, losses_N: torch.Tensor | None = None) -> None:
        """Measures the rollouts at these indices. `logits_MV` are those at `rows_of(indices)`, before the temperature;
        the losses are of all their positions."""
        batch = [self._scored[index] for index in indices]
        num_rows, rows_M = self._num_rows(indices), self.rows_of(indices)
        mass_M, overlap_M = self._mass_and_overlap(batch, logits_MV / self._temperature, rows_M)
        nothing_N = np.full(num_rows, np.nan, np.float32)
        losses = nothing_N if losses_N is None else losses_N.float().cpu().numpy()
        columns = (losses, _scattered(mass_M, rows_M, num_rows), _scattered(overlap_M, rows_M, num_rows))
        parts = zip(*(split_by_rollout(column, batch) for column in columns), strict=True)
        for index, (loss_N, masses_N, overlaps_N) in zip(indices, parts, strict=True):
            self._columns[index] = StudentColumns(losses_N=loss_N, masses_N=masses_N, overlaps_N=overlaps_N)

    def finish(self) -> list[StudentColumns]:
        """One entry per rollout of the step, in order."""
        return [
            self._columns.get(index) or unmeasured(len(one.scores.positions_N))
            for index, one in enumerate(self._scored)
        ]

    def _num_rows(self, indices: Sequence[int]) -> int:
        return sum(len(self._scored[index].scores.positions_N) for index in indices)

    def _mass_and_overlap(
        self, batch: Sequence[ScoredEpisode], logits_MV: torch.Tensor, rows_M: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        device = logits_MV.device
        ids_NK = np.concatenate([one.scores.support_ids_NK for one in batch])
        is_inside_NK = ~np.isneginf(np.concatenate([one.scores.support_logprobs_NK for one in batch]))
        ids_MK = torch.from_numpy(ids_NK[rows_M]).to(device)
        is_inside_MK = torch.from_numpy(is_inside_NK[rows_M]).to(device)
        inside_MK = logits_MV.gather(1, ids_MK)
        log_inside_M = inside_MK.masked_fill(~is_inside_MK, float("-inf")).logsumexp(dim=1)
        # Of equal logits at the border all count as inside.
        least_M1 = logits_MV.topk(ids_MK.shape[1], dim=1).values[:, -1:]
        num_shared_M = ((inside_MK >= least_M1) & is_inside_MK).sum(dim=1)
        mass_M = (log_inside_M - logits_MV.logsumexp(dim=1)).exp().clamp(max=1.0)
        return mass_M, num_shared_M / is_inside_MK.sum(dim=1)


@torch.no_grad()
def student_columns(
    student: Student,
    scored: Sequence[ScoredEpisode],
    *,
    temperature: float,
    max_positions: int = MAX_POSITIONS,
    micro_batch_size: int = 16,
) -> list[StudentColumns]:
    """Masses and overlaps of a step without training on it; its losses are NaN."""
    measure = StudentMeasure(scored, temperature=temperature, max_positions=max_positions)
    for indices in micro_batches(scored, size=micro_batch_size):
        sequences = [scored[index].sequence for index in indices]
        outputs = student.module(sequences, dense_rows_M=measure.rows_of(indices))
        assert outputs.dense_logits_MV is not None
        measure.add(indices, outputs.dense_logits_MV)
    return measure.finish()


def spread_rows(num_rows: int, *, num_wanted: int) -> npt.NDArray[np.int64]:
    """At most `num_wanted` of the rows, ascending; all of them where they are as few. A golden-ratio sequence: evenly
    spread, and in step with no length of a response."""
    if num_rows <= num_wanted:
        return np.arange(num_rows)
    places = (np.arange(1, num_wanted + 1) * _GOLDEN) % 1.0
    return np.unique((places * num_rows).astype(np.int64))


def _scattered(values_M: torch.Tensor, rows_M: npt.NDArray[np.int64], num_rows: int) -> FloatColumn:
    """The values in their rows, NaN elsewhere."""
    column_N = np.full(num_rows, np.nan, np.float32)
    column_N[rows_M] = values_M.float().cpu().numpy()
    return column_N
