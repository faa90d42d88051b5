"""Computes the measures of a set of positions; docs/instruments.md defines each. Judges nothing."""

# N = scored positions, M = those of them that were measured

from __future__ import annotations

import numpy as np

from preceptor_client.train.instruments.table import BoolColumn, FloatColumn, PositionTable

Measures = dict[str, float | int | None]

FLOOR_LOGPROB = -100.0
"""Nats. A lower logprob, -inf above all, counts as this one in means and gaps, and in `no_teacher_probability`: one
token must not turn a mean into -inf, and e^-100 is no probability that either side could tell from 0."""
CONFIDENT_STUDENT_LOGPROB = -0.1
"""Above it the student was sure; with the next, the paper's count for failure 3."""
DISAGREEING_TEACHER_LOGPROB = -10.0
"""Below it the teacher rules the token out."""
GAP_QUANTILES = {"q01": 0.01, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "q99": 0.99}


def measure(table: PositionTable) -> Measures:
    """Every measure of the table. Means are over the positions where the value was measured, which leaves NaN and
    infinity out; None where there is none. Probabilities are in [0, 1], logprobs, gaps and entropies in nats."""
    teacher_N = np.maximum(table.teacher_logprobs_N, FLOOR_LOGPROB)
    student_N = np.maximum(table.student_logprobs_N, FLOOR_LOGPROB)
    return {
        "num_positions": len(table.positions_N),
        "loss": _mean(table.losses_N),
        "student_mass": _mean(table.student_masses_N),
        "teacher_mass": _mean(table.teacher_masses_N),
        "outside_share": _mean(table.is_outside_N),
        "overlap": _mean(table.overlaps_N),
        "student_entropy": _mean(table.student_entropies_N),
        "teacher_entropy": _mean(table.teacher_entropies_N),
        "student_logprob": _mean(student_N),
        "teacher_logprob": _mean(teacher_N),
        "no_teacher_probability": int((table.teacher_logprobs_N < FLOOR_LOGPROB).sum()),
        **_gaps(teacher_N - student_N),
        "repeated_share": _mean(table.is_repeated_N),
        "repeated_teacher_probability": _mean(np.exp(table.teacher_logprobs_N[table.is_repeated_N])),
        "truncated_share": _mean(table.is_truncated_R),
        "confident_disagreements": _confident_disagreements(table),
        **_ends(table, teacher_N=teacher_N),
    }


def reward_measures(table: PositionTable) -> Measures:
    """The rewards of the episodes, in the reward's own units: the mean and the standard deviation of this very set.
    Nothing where no episode has a reward."""
    rewards_M = table.rewards_R[np.isfinite(table.rewards_R)]
    return {"mean_reward": float(rewards_M.mean()), "reward_std": float(rewards_M.std())} if len(rewards_M) else {}


def _gaps(gaps_N: FloatColumn) -> Measures:
    """The signal of a token is log q - log p: what the teacher would have its probability grow by, in nats."""
    gaps_M = gaps_N[np.isfinite(gaps_N)]
    if not len(gaps_M):
        names = ("gap", *(f"gap_{name}" for name in GAP_QUANTILES), "positive_share", "positive_weight")
        return dict.fromkeys(names)
    quantiles = np.quantile(gaps_M, list(GAP_QUANTILES.values()))
    weight = float(np.abs(gaps_M).sum())
    is_positive_M = gaps_M > 0
    return {
        "gap": float(gaps_M.mean()),
        **{f"gap_{name}": float(value) for name, value in zip(GAP_QUANTILES, quantiles, strict=True)},
        "positive_share": float(is_positive_M.mean()),
        "positive_weight": float(gaps_M[is_positive_M].sum()) / weight if weight else None,
    }


def _ends(table: PositionTable, *, teacher_N: FloatColumn) -> Measures:
    """How the two sides end a response."""
    return {
        "end_agreement": _mean(table.is_teacher_end_N[table.is_end_N]),
        "end_teacher_logprob": _mean(teacher_N[table.is_end_N]),
        "scored_end_share": _mean(table.has_scored_end_R[~table.is_truncated_R]),
        "missed_ends": int((table.is_teacher_end_N & ~table.is_end_N).sum()),
    }


def _confident_disagreements(table: PositionTable) -> int:
    is_sure_N = table.student_logprobs_N > CONFIDENT_STUDENT_LOGPROB
    return int((is_sure_N & (table.teacher_logprobs_N < DISAGREEING_TEACHER_LOGPROB)).sum())


def _mean(values_N: FloatColumn | BoolColumn) -> float | None:
    values_M = values_N[np.isfinite(values_N)]
    return float(values_M.mean()) if len(values_M) else None
