"""Converts the supports and sampled tokens of a batch of scored episodes into tensors."""

# N = scored positions, K = width of the widest support

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.support import Support


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """The teacher's side of a batch and the student's tokens, as tensors on the student's device."""

    ids_NK: torch.Tensor
    teacher_logprobs_NK: torch.Tensor
    teacher_log_tail_N: torch.Tensor
    is_sampled_inside_N: torch.Tensor
    sampled_ids_N: torch.Tensor
    teacher_sampled_logprobs_N: torch.Tensor
    old_logprobs_N: torch.Tensor
    advantage_N: torch.Tensor
    """0 where nothing gives credit."""
    turn_N: torch.Tensor
    share_N: torch.Tensor
    """How much this teacher weighs beside the others of an episode; 1 for one alone."""

    def rows(self, part: slice | torch.Tensor) -> Targets:
        """Those of some positions."""
        return Targets(**{name: getattr(self, name)[part] for name in Targets.__dataclass_fields__})


def targets_of(batch: Sequence[ScoredEpisode], *, device: torch.device) -> Targets:
    """What the student is compared with, at every scored position of a batch, in its order."""
    return _targets(
        batch,
        supports=[one.support for one in batch],
        sampled=[one.scores.sampled_logprobs_N for one in batch],
        shares=[np.ones(len(one.scores.positions_N)) for one in batch],
        device=device,
    )


def targets_by_teacher(batch: Sequence[ScoredEpisode], *, device: torch.device) -> list[Targets]:
    """The same for each of the teachers of the episodes, which are equally many and in one order."""
    num_teachers = len(batch[0].by_teacher)
    assert num_teachers, "an objective by teacher, and an episode of one without a name"
    assert all(len(one.by_teacher) == num_teachers for one in batch)
    return [
        _targets(
            batch,
            supports=[one.by_teacher[index].support for one in batch],
            sampled=[one.by_teacher[index].scores.sampled_logprobs_N for one in batch],
            shares=[one.by_teacher[index].shares_N for one in batch],
            device=device,
        )
        for index in range(num_teachers)
    ]


def _targets(
    batch: Sequence[ScoredEpisode],
    *,
    supports: Sequence[Support],
    sampled: Sequence[npt.NDArray[np.floating]],
    shares: Sequence[npt.NDArray[np.float64]],
    device: torch.device,
) -> Targets:
    width = max(support.ids_NK.shape[1] for support in supports)
    ids_NK, logprobs_NK = zip(*(_widened(support, width) for support in supports), strict=True)
    old = [one.episode.student.logprobs_T[one.scores.positions_N] for one in batch]

    def tensor(parts: Sequence[npt.NDArray[np.generic]]) -> torch.Tensor:
        joined = np.concatenate(parts)
        return torch.from_numpy(joined.astype(np.float32) if joined.dtype == np.float64 else joined).to(device)

    return Targets(
        ids_NK=tensor(ids_NK),
        teacher_logprobs_NK=tensor(logprobs_NK),
        teacher_log_tail_N=tensor([support.teacher_log_tail_N for support in supports]),
        is_sampled_inside_N=tensor([support.is_sampled_inside_N for support in supports]),
        sampled_ids_N=tensor([one.sampled_ids_N for one in batch]),
        teacher_sampled_logprobs_N=tensor(sampled),
        old_logprobs_N=tensor(old),
        advantage_N=tensor([_advantages(one) for one in batch]),
        turn_N=tensor([one.turns_N for one in batch]),
        share_N=tensor(shares),
    )


def _advantages(one: ScoredEpisode) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.zeros(len(one.scores.positions_N)) if one.advantages_N is None else one.advantages_N


def _widened(
    support: Support, width: int
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.int64]], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """The support with entries of -inf up to a width."""
    missing = width - support.ids_NK.shape[1]
    ids_NK = np.pad(support.ids_NK, ((0, 0), (0, missing)), mode="edge")
    return ids_NK, np.pad(support.teacher_logprobs_NK, ((0, 0), (0, missing)), constant_values=-np.inf)
