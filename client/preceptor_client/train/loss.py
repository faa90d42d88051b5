"""The loss of scored rollouts, position by position: one forward of the student, the objective. Moves no weights."""

# N = scored positions, K = support size

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from preceptor_client.train.head import log_partition, support_logits
from preceptor_client.train.hidden import ScoredSequence, scored_hidden_states
from preceptor_client.train.objective.lsm import lsm
from preceptor_client.train.scoring import ScoredRollout
from preceptor_client.train.student import Student


def micro_batches(scored: Sequence[ScoredRollout], *, size: int) -> Iterator[list[ScoredRollout]]:
    """The rollouts that have a score, a few at a time."""
    eligible = [one for one in scored if len(one.scores.positions_N)]
    # Alike lengths side by side waste the least padding; the sort is stable, so a resumed run sees the same.
    eligible.sort(key=lambda one: len(one.rollout.prompt_ids) + len(one.rollout.response_ids))
    for start in range(0, len(eligible), size):
        yield eligible[start : start + size]


def position_losses(
    student: Student, scored: Sequence[ScoredRollout], *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and student mass of every scored position, shape [N] each; the mass is without gradients. `positions_N` of
    the scores already excludes prompt, padding, masked and failed positions; nothing here re-derives it."""
    device = student.device
    sequences = [
        ScoredSequence(
            prompt_ids=one.rollout.prompt_ids,
            response_ids=one.rollout.response_ids,
            positions_N=one.scores.positions_N,
        )
        for one in scored
    ]
    ids_NK = torch.from_numpy(np.concatenate([one.scores.support_ids_NK for one in scored])).to(device)
    teacher_NK = torch.from_numpy(np.concatenate([one.scores.support_logprobs_NK for one in scored])).to(device)
    hidden_ND = scored_hidden_states(student, sequences)
    logits_NK = support_logits(hidden_ND, student.head, ids_NK)
    loss_N = lsm(logits_NK, teacher_NK, temperature=temperature)
    with torch.no_grad():
        log_z_N = log_partition(hidden_ND, student.head, temperature=temperature)
        # An entry of -inf is outside the support.
        inside_NK = (logits_NK.float() / temperature).masked_fill(teacher_NK.isneginf(), float("-inf"))
        mass_N = torch.exp(inside_NK.logsumexp(dim=1) - log_z_N).clamp(max=1.0)
    return loss_N, mass_N
