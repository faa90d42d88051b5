"""What each of several teachers said, measured by its own scores."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from preceptor_client.train.instruments.breakdown import breakdown_rows, teacher_breakdown_rows
from preceptor_client.train.instruments.table import position_table, teacher_tables
from preceptor_client.train.learner.columns import unmeasured
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.teacher.mixture import rows_of
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores

from tests.unit.client.train.instruments.slow import same, slow_measures, slow_step
from tests.unit.client.train.instruments.steps import END, OTHER_END, Step, Token, random_step, response, step_of

ENDS = (END, OTHER_END)


def by(kind: str, step: Step) -> dict[object, MetricRow]:
    scored, columns = step
    tables = teacher_tables(scored, columns, end_token_ids=ENDS)
    rows = [
        *breakdown_rows(position_table(scored, columns, end_token_ids=ENDS), step=3),
        *teacher_breakdown_rows(tables, step=3),
    ]
    return {row["group"]: row for row in rows if row["by"] == kind}


def taught(one: ScoredEpisode, weights: dict[str, float], *, shift: float = 0.0) -> ScoredEpisode:
    """Each teacher finds the student's tokens less likely than the one before, by `shift` nats."""
    number = len(one.scores.positions_N)
    answers = [
        TeacherScores(
            name=name,
            teacher=name,
            support=one.support,
            scores=replace(one.scores, sampled_logprobs_N=one.scores.sampled_logprobs_N - np.float32(index * shift)),
            shares_N=np.full(number, weight),
        )
        for index, (name, weight) in enumerate(weights.items())
    ]
    return replace(one, by_teacher=tuple(answers))


@pytest.mark.parametrize("seed", range(8))
def test_rows_by_teacher_agree_with_a_loop_over_its_own_scores(seed: int) -> None:
    """Two teachers share every second response; what was measured against both belongs to neither."""
    scored, columns = random_step(seed)
    scored = [
        taught(one, {"law": 0.75, "code": 0.25} if index % 2 else {"code": 1.0}, shift=2.0)
        for index, one in enumerate(scored)
    ]
    found = by("teacher", (scored, columns))
    for name, row in found.items():
        asked = [
            (replace(one, scores=answer.scores), own if len(one.by_teacher) == 1 else unmeasured(len(own.losses_N)))
            for one, own in zip(scored, columns, strict=True)
            for answer in one.by_teacher
            if answer.teacher == name
        ]
        assert same(row, slow_measures(slow_step(*step_of(*asked), ends=ENDS)))
    assert set(found) == ({"law", "code"} if len(scored) > 1 else {"code"})


def test_a_teacher_weighs_as_it_did_over_the_tokens_that_it_scored() -> None:
    """Law: 3 of 4 in one token. Code: 1 of 4 there, and alone in two tokens, so (0.25 + 1 + 1) / 3."""
    both, both_columns = response(Token(id=5, loss=9.0))
    alone, alone_columns = response(Token(id=6, loss=1.0), Token(id=7, loss=2.0))
    scored = [taught(both, {"law": 0.75, "code": 0.25}), taught(alone, {"code": 1.0})]
    found = by("teacher", (scored, [both_columns, alone_columns]))
    assert {name: row["mean_weight"] for name, row in found.items()} == {"law": 0.75, "code": 0.75}
    assert {name: row["loss"] for name, row in found.items()} == {"law": None, "code": 1.5}
    assert found["law"]["num_positions"] == 1


def test_a_teacher_has_its_own_signal_and_not_the_mixtures() -> None:
    one, columns = response(Token(id=5, student=-1.0, teacher=-1.5))
    found = by("teacher", ([taught(one, {"law": 0.5, "code": 0.5}, shift=2.0)], [columns]))
    assert {name: row["gap"] for name, row in found.items()} == {"law": -0.5, "code": -2.5}


def test_teachers_without_names_have_no_rows() -> None:
    assert by("teacher", random_step(1)) == {}


def test_a_teacher_without_a_scored_token_has_a_row_without_numbers() -> None:
    one, _ = response(Token(id=5))
    nothing = np.zeros(1, np.bool_)
    lost = replace(one, scores=rows_of(one.scores, nothing), support=one.support.rows(nothing))
    found = by("teacher", ([taught(lost, {"law": 1.0})], [unmeasured(0)]))
    assert (found["law"]["num_positions"], found["law"]["gap"], found["law"]["mean_weight"]) == (0, None, None)
    assert not any(isinstance(value, float) and math.isnan(value) for value in found["law"].values())


def test_tasks_of_the_run_have_rows_and_so_have_the_kinds_of_their_examples() -> None:
    step = step_of(
        *(
            response(Token(id=5, loss=loss), task=task)
            for loss, task in ((1.0, "maths"), (2.0, "algebra"), (6.0, "code"))
        )
    )
    scored = [replace(one, task=task) for one, task in zip(step[0], ("maths", "maths", "code"), strict=True)]
    found = by("task", (scored, step[1]))
    assert {group: row["loss"] for group, row in found.items()} == {"code": 6.0, "maths": 1.5, "maths/algebra": 2.0}
