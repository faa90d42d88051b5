"""The measures again, position by position in plain Python: slow, obvious, and without the code under test."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.teacher.scored import ScoredEpisode

Row = dict[str, Any]  # Any: numbers and flags of one position


@dataclass(frozen=True, kw_only=True)
class SlowStep:
    """Positions, and responses as (length, is cut, has a scored end, task)."""

    rows: list[Row]
    responses: list[tuple[int, bool, bool, str]]


def slow_step(scored: Sequence[ScoredEpisode], columns: Sequence[StudentColumns], *, ends: Collection[int]) -> SlowStep:
    rows: list[Row] = []
    responses = []
    for index, (one, own) in enumerate(zip(scored, columns, strict=True)):
        ids, scores, has_scored_end = one.episode.response_ids, one.scores, False
        is_cut = one.episode.finish_reason == "length"
        for row, position in enumerate(scores.positions_N.tolist()):
            token = ids[position]
            support = {
                int(candidate): float(logprob)
                for candidate, logprob in zip(scores.support_ids_NK[row], scores.support_logprobs_NK[row], strict=True)
                if logprob != -math.inf
            }
            has_scored_end |= token in ends and not is_cut
            rows.append(
                {
                    "response": index,
                    "position": position,
                    "task": one.episode.example.task,
                    "student": float(one.episode.student.logprobs_T[position]),
                    "teacher": float(scores.sampled_logprobs_N[row]),
                    "student_entropy": float(one.episode.student.entropies_T[position]),
                    "teacher_entropy": math.nan if scores.entropies_N is None else float(scores.entropies_N[row]),
                    "teacher_mass": 1 - math.exp(float(scores.log_tail_mass_N[row])),
                    "student_mass": float(own.masses_N[row]),
                    "overlap": float(own.overlaps_N[row]),
                    "loss": float(own.losses_N[row]),
                    "is_outside": token not in support,
                    "is_repeated": _stood_before(ids, position),
                    "is_end": token in ends,
                    "is_teacher_end": max(support, key=lambda candidate: support[candidate]) in ends,
                }
            )
        responses.append((len(ids), is_cut, has_scored_end, one.episode.example.task))
    return SlowStep(rows=rows, responses=responses)


def _stood_before(ids: Sequence[int], position: int, n: int = 4) -> bool:
    if position + 1 < n:
        return False
    gram = list(ids[position - n + 1 : position + 1])
    return any(list(ids[first : first + n]) == gram for first in range(position - n + 1))


def slow_measures(step: SlowStep) -> dict[str, float | int | None]:
    rows = step.rows
    gaps = [_floored(row["teacher"]) - _floored(row["student"]) for row in rows]
    ends = [row for row in rows if row["is_end"]]
    weight = sum(abs(gap) for gap in gaps)
    quantiles = {"q01": 1, "q05": 5, "q25": 25, "q50": 50, "q75": 75, "q95": 95, "q99": 99}
    return {
        "num_positions": len(rows),
        "loss": _mean_of(rows, lambda row: row["loss"]),
        "student_mass": _mean_of(rows, lambda row: row["student_mass"]),
        "teacher_mass": _mean_of(rows, lambda row: row["teacher_mass"]),
        "outside_share": _mean_of(rows, lambda row: row["is_outside"]),
        "overlap": _mean_of(rows, lambda row: row["overlap"]),
        "student_entropy": _mean_of(rows, lambda row: row["student_entropy"]),
        "teacher_entropy": _mean_of(rows, lambda row: row["teacher_entropy"]),
        "student_logprob": _mean_of(rows, lambda row: _floored(row["student"])),
        "teacher_logprob": _mean_of(rows, lambda row: _floored(row["teacher"])),
        "no_teacher_probability": sum(row["teacher"] < -100 for row in rows),
        "gap": _mean(gaps),
        **{f"gap_{name}": _quantile(gaps, percent) for name, percent in quantiles.items()},
        "positive_share": _mean([gap > 0 for gap in gaps]),
        "positive_weight": sum(gap for gap in gaps if gap > 0) / weight if weight else None,
        "repeated_share": _mean_of(rows, lambda row: row["is_repeated"]),
        "repeated_teacher_probability": _mean([math.exp(row["teacher"]) for row in rows if row["is_repeated"]]),
        "truncated_share": _mean([is_cut for _, is_cut, _, _ in step.responses]),
        "confident_disagreements": sum(row["student"] > -0.1 and row["teacher"] < -10 for row in rows),
        "end_agreement": _mean([row["is_teacher_end"] for row in ends]),
        "end_teacher_logprob": _mean([_floored(row["teacher"]) for row in ends]),
        "scored_end_share": _mean([is_scored for _, is_cut, is_scored, _ in step.responses if not is_cut]),
        "missed_ends": sum(row["is_teacher_end"] and not row["is_end"] for row in rows),
    }


def _floored(logprob: float) -> float:
    return -100.0 if logprob < -100 else logprob


def _mean_of(rows: list[Row], value: Callable[[Row], float]) -> float | None:
    return _mean([value(row) for row in rows])


def _mean(values: Sequence[float]) -> float | None:
    measured = [value for value in values if not math.isnan(value)]
    return math.fsum(measured) / len(measured) if measured else None


def _quantile(values: Sequence[float], percent: int) -> float | None:
    """Linear between the order statistics."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def same(found: Mapping[str, Any], expected: Mapping[str, float | int | None]) -> bool:
    """Equal up to the order of float64 sums, and measured in the same places; `found` may hold more."""
    numbers = {name: value for name, value in expected.items() if value is not None}
    is_absent = all(found[name] is None for name in expected if name not in numbers)
    return is_absent and {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-12, abs=1e-12)
