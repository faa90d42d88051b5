from __future__ import annotations

import json
import math

import numpy as np
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.train.instruments.measures import Measures, measure
from preceptor_client.train.instruments.table import position_table

from tests.unit.client.train.instruments.slow import same, slow_measures, slow_step
from tests.unit.client.train.instruments.steps import END, OTHER_END, Step, Token, random_step, response, step_of

ENDS = (END, OTHER_END)


def measured(step: Step) -> Measures:
    return measure(position_table(*step, end_token_ids=ENDS))


@pytest.mark.parametrize("seed", range(40))
def test_every_measure_agrees_with_a_loop_over_the_positions(seed: int) -> None:
    """Both sides compute in float64 from the same float32 columns: only the order of sums may differ."""
    step = random_step(seed)
    expected = slow_measures(slow_step(*step, ends=ENDS))
    assert same(measured(step), expected)
    assert list(measured(step)) == list(expected)


def test_the_random_steps_hold_what_is_hard() -> None:
    """Else the comparison above would prove little."""
    every = [measured(random_step(seed)) for seed in range(40)]
    assert any(one["num_positions"] == 0 for one in every)
    for name in ("no_teacher_probability", "confident_disagreements", "missed_ends"):
        assert sum(bool(one[name]) for one in every) > 10, name
    for name in ("repeated_teacher_probability", "end_agreement", "student_mass", "scored_end_share"):
        assert 0 < sum(one[name] is None for one in every) < 30, name


def test_a_step_without_a_scored_position_has_counts_and_nothing_else() -> None:
    lost = Token(id=5, status=PositionStatus.MISALIGNED)
    found = measured(step_of(response(lost, lost), response(lost, Token(id=END, status=PositionStatus.SPECIAL))))
    told = {name: value for name, value in found.items() if value is not None}
    assert told == {
        "num_positions": 0,
        "no_teacher_probability": 0,
        "truncated_share": 0.5,
        "confident_disagreements": 0,
        "scored_end_share": 0.0,
        "missed_ends": 0,
    }


def test_a_step_without_responses_can_be_measured() -> None:
    found = measured(([], []))
    assert found["num_positions"] == 0
    assert found["truncated_share"] is None


def test_no_teacher_probability_counts_as_the_floor_and_keeps_the_row_finite() -> None:
    step = step_of(response(Token(id=5, teacher=-math.inf, student=-1.0), Token(id=6, teacher=-2.0, student=-1.0)))
    found = measured(step)
    assert (found["teacher_logprob"], found["gap"], found["no_teacher_probability"]) == (-51.0, -50.0, 1)
    assert found["gap_q01"] == pytest.approx(-99 + 0.01 * 98)
    json.dumps(found, allow_nan=False)


def test_the_floor_itself_is_not_counted_as_no_probability() -> None:
    assert measured(step_of(response(Token(id=5, teacher=-100.0))))["no_teacher_probability"] == 0


def test_one_token_is_enough_for_every_mean() -> None:
    token = Token(id=END, student=-0.5, teacher=-0.25, mass=0.5, overlap=0.75, support=(END, 5, 6, 7))
    found = measured(step_of(response(token)))
    assert {name: found[name] for name in ("gap", "gap_q01", "gap_q99", "positive_share", "positive_weight")} == {
        "gap": 0.25,
        "gap_q01": 0.25,
        "gap_q99": 0.25,
        "positive_share": 1.0,
        "positive_weight": 1.0,
    }
    assert (found["student_mass"], found["overlap"], found["end_agreement"]) == (0.5, 0.75, 1.0)


def test_equal_logprobs_are_no_positive_signal_and_have_no_weight() -> None:
    found = measured(step_of(response(Token(id=5, student=-1.0, teacher=-1.0))))
    assert (found["positive_share"], found["positive_weight"]) == (0.0, None)


def test_few_positive_tokens_may_carry_the_weight() -> None:
    """Three signals of -1 and one of +3."""
    down, up = Token(id=5, student=-1.0, teacher=-2.0), Token(id=6, student=-4.0, teacher=-1.0)
    found = measured(step_of(response(down, down, down, up)))
    assert (found["positive_share"], found["positive_weight"]) == (0.25, 0.5)


def test_mass_and_overlap_are_means_over_the_sample_alone() -> None:
    tokens = [Token(id=5), Token(id=6, mass=0.0, overlap=0.5), Token(id=7), Token(id=8, mass=1.0, overlap=1.0)]
    found = measured(step_of(response(*tokens)))
    assert (found["student_mass"], found["overlap"], found["num_positions"]) == (0.5, 0.75, 4)


def test_what_the_student_could_not_say_is_left_out_and_not_a_nan() -> None:
    tokens = [Token(id=5, student=math.nan, student_entropy=math.nan), Token(id=6, student=-1.0, teacher=-3.0)]
    found = measured(step_of(response(*tokens)))
    assert (found["student_logprob"], found["gap"], found["student_entropy"]) == (-1.0, -2.0, 1.25)
    json.dumps(found, allow_nan=False)


def test_entropy_that_the_teacher_does_not_compute_is_absent_and_not_a_number() -> None:
    silent = response(Token(id=5, teacher_entropy=None), Token(id=6, teacher_entropy=None))
    found = measured(step_of(silent))
    assert (found["teacher_entropy"], found["student_entropy"], found["num_positions"]) == (None, 1.25, 2)
    # Of two teachers, the one that computes them is what the mean is over.
    assert measured(step_of(silent, response(Token(id=5, teacher_entropy=0.5))))["teacher_entropy"] == 0.5


def test_thresholds_of_a_confident_disagreement_are_strict() -> None:
    def count(*, student: float, teacher: float) -> float | int | None:
        return measured(step_of(response(Token(id=5, student=student, teacher=teacher))))["confident_disagreements"]

    # As float32, -0.1 is a little below -0.1.
    assert count(student=-0.0999, teacher=-10.001) == 1
    assert count(student=-0.1, teacher=-50.0) == 0
    assert count(student=-0.01, teacher=-10.0) == 0
    assert count(student=-0.01, teacher=-math.inf) == 1


def test_what_fills_a_row_up_is_outside_the_support() -> None:
    """The student's 5 is in the support; its 6 stands there only as a filler."""
    inside = Token(id=5, support=(4, 5, 7, 8))
    filler = Token(id=6, support=(4, 5, 6, 6), logprobs=(-1.0, -1.0, -math.inf, -math.inf))
    assert measured(step_of(response(inside, filler)))["outside_share"] == 0.5


def test_masses_of_nothing_and_of_everything_are_zero_and_one() -> None:
    found = [measured(step_of(response(Token(id=5, tail=tail))))["teacher_mass"] for tail in (0.0, 1.0, 0.5)]
    assert found == pytest.approx([1.0, 0.0, 0.5], abs=1e-7)


def test_end_without_a_score_is_not_taught() -> None:
    ended = response(Token(id=5), Token(id=END))
    unscored = response(Token(id=5), Token(id=END, status=PositionStatus.SPECIAL))
    cut = response(Token(id=5), Token(id=6))
    assert measured(step_of(ended, unscored, cut))["scored_end_share"] == 0.5


def test_any_end_token_of_the_student_agrees_with_any_other() -> None:
    step = step_of(
        response(Token(id=END, support=(OTHER_END, 5, 6, 7), teacher=-3.0)),
        response(Token(id=OTHER_END, support=(5, END, 6, 7), teacher=-1.0)),
        response(Token(id=9, support=(END, 5, 6, 7))),
    )
    found = measured(step)
    assert (found["end_agreement"], found["end_teacher_logprob"], found["missed_ends"]) == (0.5, -2.0, 1)


def test_repeats_count_text_without_a_score_and_average_probabilities() -> None:
    """A loop of 1 2 3 4; the first round has no score. Probabilities 1/2 and 1/4 average to 3/8."""
    lost = [Token(id=token, status=PositionStatus.MISALIGNED) for token in (5, 6, 7, 8)]
    found = measured(
        step_of(
            response(
                *lost,
                *(Token(id=token) for token in (5, 6, 7)),
                Token(id=8, teacher=math.log(0.5)),
                Token(id=5, teacher=math.log(0.25)),
            )
        )
    )
    assert found["repeated_share"] == pytest.approx(2 / 5)
    assert found["repeated_teacher_probability"] == pytest.approx(3 / 8, rel=1e-6)  # float32 logprobs


def test_a_repeat_does_not_reach_into_another_response() -> None:
    tokens = [Token(id=token) for token in (5, 6, 7, 8)]
    assert measured(step_of(response(*tokens), response(*tokens)))["repeated_share"] == 0.0


def test_columns_of_another_step_are_refused() -> None:
    scored, columns = step_of(response(Token(id=5), Token(id=6)))
    _, shorter = step_of(response(Token(id=5)))
    with pytest.raises(AssertionError):
        position_table(scored, shorter, end_token_ids=ENDS)
    assert np.array_equal(position_table(scored, columns, end_token_ids=ENDS).positions_N, [0, 1])
