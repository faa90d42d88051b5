from __future__ import annotations

import math

import pytest
from preceptor.wire import PositionStatus
from preceptor_client.train.instruments.bounds import Bounds, Level
from preceptor_client.train.instruments.breakdown import breakdown_rows
from preceptor_client.train.instruments.measures import measure
from preceptor_client.train.instruments.table import position_table
from preceptor_client.train.instruments.verdicts import Failure, Verdict, verdicts
from preceptor_client.train.teacher.views import view_teacher

from tests.unit.client.train.instruments.steps import END, Step, Token, response, step_of


def judged(step: Step) -> list[Verdict]:
    table = position_table(*step, end_token_ids=[END])
    rows = [row for row in breakdown_rows(table, step=0) if row["by"] == "position"]
    return verdicts(measure(table), num_by_status=view_teacher(step[0]).num_by_status, by_position=rows)


def test_no_verdict_names_a_setting_that_this_teacher_does_not_allow() -> None:
    far = healthy(*(good(40 + index, mass=0.3, overlap=0.2, support=(1, 3, 4, 6)) for index in range(30)))
    table = position_table(*far, end_token_ids=[END])
    statuses = view_teacher(far[0]).num_by_status
    told = [
        [one.change for one in verdicts(measure(table), num_by_status=statuses, by_position=[], can_name_tokens=can)]
        for can in (True, False)
    ]
    assert sum("objective.support=union" in change for change in told[0]) == 3
    assert not any("union" in change for change in told[1])
    assert [len(changes) for changes in told] == [len(told[0])] * 2
    assert all(changes for changes in told[1][:3])


def found(step: Step) -> list[tuple[Failure, Level]]:
    return [(one.failure, one.level) for one in judged(step) if one.level is not Level.OK]


def good(token: int, **changes: object) -> Token:
    """Both sides agree: the token is in the support, and the teacher likes it a little more."""
    base = {"student": -0.6, "teacher": -0.5, "support": (token, 3, 4, 6), "tail": 0.02, "mass": 0.98, "overlap": 1.0}
    return Token(id=token, **(base | changes))  # type: ignore[arg-type]  # the fields of a token


def healthy(*tokens: Token) -> Step:
    text = [good(10 + index) for index in range(30)]
    return step_of(response(*text, *tokens, good(END)))


def test_healthy_batch_has_one_ok_verdict_per_failure_with_its_numbers() -> None:
    verdicts_of = judged(healthy())
    assert [(one.failure, one.level, one.change) for one in verdicts_of] == [
        (failure, Level.OK, "") for failure in Failure
    ]
    assert "student_mass 0.98" in verdicts_of[0].found
    assert "truncated_share 0" in verdicts_of[1].found


@pytest.mark.parametrize(("mass", "level"), [(0.7, Level.WARN), (0.3, Level.FAIL)])
def test_little_student_mass_is_answered_by_a_tail_bucket_or_a_union(mass: float, level: Level) -> None:
    step = step_of(response(*(good(10 + index, mass=mass) for index in range(20)), good(END, mass=mass)))
    [verdict] = [one for one in judged(step) if one.failure is Failure.SIGNAL]
    assert verdict.level is level
    assert f"{mass:.1%}" in verdict.found
    assert "objective.kind=tail_bucket" in verdict.change
    assert "objective.support=union" in verdict.change


@pytest.mark.parametrize(("num_outside", "level"), [(1, Level.OK), (3, Level.WARN), (10, Level.FAIL)])
def test_tokens_outside_the_support_are_answered_by_another_support(num_outside: int, level: Level) -> None:
    outside = [good(50 + index, support=(3, 4, 6, 7)) for index in range(num_outside)]
    [verdict] = [one for one in judged(healthy(*outside)) if one.failure is Failure.SIGNAL]
    assert verdict.level is level
    if num_outside > 1:
        assert f"{num_outside / (31 + num_outside):.1%} of the student's tokens" in verdict.found
        assert "objective.include_sampled=true" in verdict.change


def test_signals_that_are_almost_all_negative_speak_against_one_token_objectives() -> None:
    tokens = [good(10 + index, teacher=-0.7) for index in range(19)] + [good(END, teacher=-0.1)]
    [verdict] = [one for one in judged(step_of(response(*tokens))) if one.failure is Failure.SIGNAL]
    # 0.5 nats up, 19 times 0.1 down.
    assert "only 5.0% of the student's tokens (20.8% of the signal's weight)" in verdict.found
    assert (verdict.level, "sampled_token" in verdict.change) == (Level.WARN, True)


def test_support_that_misses_the_teacher_or_the_student_is_told() -> None:
    tokens = [good(10 + index, tail=0.6, overlap=0.6) for index in range(20)]
    changes = [one.change for one in judged(step_of(response(*tokens, good(END)))) if one.failure is Failure.SIGNAL]
    assert [change.split(" ")[0] for change in changes] == ["raise", "fine-tune"]


def _loop(*, rounds: int, teacher: float) -> Step:
    prose = [good(100 + index) for index in range(30)]
    loop = [good(token, teacher=teacher) for _ in range(rounds) for token in (10, 11, 12, 13, 14)]
    return step_of(response(*prose, *loop, good(END)))


@pytest.mark.parametrize(
    ("rounds", "probability", "level"),
    [(2, 0.95, Level.OK), (5, 0.5, Level.WARN), (5, 0.95, Level.FAIL), (20, 0.5, Level.FAIL)],
)
def test_a_loop_is_worse_where_the_teacher_backs_it(rounds: int, probability: float, level: Level) -> None:
    """Of 5 n + 31 tokens, 5 n - 8 are repeats: 5 %, 30 % and 70 %."""
    [verdict] = [
        one for one in judged(_loop(rounds=rounds, teacher=math.log(probability))) if one.failure is Failure.PREFIXES
    ]
    assert verdict.level is level
    if level is not Level.OK:
        assert ("it backs the loop" in verdict.found) == (probability > 0.9)
        assert verdict.change == "rollout.top_p=0.9, and a lower rollout.max_new_tokens"


def test_cut_responses_are_a_warning_that_counts_missed_ends() -> None:
    tokens = [good(10 + index) for index in range(30)]
    cut = step_of(response(*tokens, good(50, support=(END, 50, 6, 7))))
    [verdict] = [one for one in judged(cut) if one.failure is Failure.PREFIXES]
    assert verdict.level is Level.WARN
    assert "100.0% of the responses were cut" in verdict.found
    assert "at 1 place(s) the teacher would have ended" in verdict.found


@pytest.mark.parametrize(("late", "level"), [(-1.5, Level.OK), (-3.5, Level.WARN), (-9.0, Level.FAIL)])
def test_a_lower_tail_that_falls_late_names_the_length_to_keep(late: float, level: Level) -> None:
    """Ten per cent of the late tokens have a gap of `late`, early ones of +0.1; means stay close."""

    def one(index: int) -> Token:
        is_late = index >= 64 and index % 10 == 0
        return good(1000 + index, teacher=-0.6 + late) if is_late else good(1000 + index)

    # Five responses: 80 positions in the first bucket are enough to judge by.
    step = step_of(*(response(*(one(index) for index in range(200)), good(END)) for _ in range(5)))
    [verdict] = [one for one in judged(step) if one.failure is Failure.PREFIXES]
    assert verdict.level is level
    if level is not Level.OK:
        assert verdict.change.startswith("rollout.max_new_tokens=64,")
        assert f"{late:.1f} nats at tokens 64-255, and 0.1 at tokens 0-15" in verdict.found


def test_few_late_tokens_are_not_judged() -> None:
    """52 positions in the second bucket, most of them awful."""
    tokens = [good(10 + index) for index in range(16)]
    late = [good(50 + index, teacher=-9.0) for index in range(12)]
    step = step_of(*(response(*tokens, *late, good(END)) for _ in range(4)))
    assert all(level is not Level.WARN for failure, level in found(step) if failure is Failure.PREFIXES)


def test_paper_case_of_another_end_token_is_a_failure_of_tokens() -> None:
    """Its figure 5: the student's <|im_end|> at -0.00, the teacher gives it -58.71 and ends with another token."""
    tokens = [good(10 + index) for index in range(30)]
    ended = Token(id=END, student=-0.0, teacher=-58.71, support=(END + 1, 5, 6, 7), mass=0.95, overlap=1.0, tail=0.02)
    told = [one for one in judged(step_of(response(*tokens, ended))) if one.failure is Failure.TOKENS]
    assert [one.level for one in told] == [Level.FAIL, Level.FAIL]
    assert told[0].found.startswith("of 1 token(s) in 31 the student is sure")
    assert "teacher.segmentation=mask" in told[0].change
    assert "-58.7 nats" in told[1].found
    assert "teacher.special_pairs or teacher.end_token_ids" in told[1].change


def test_end_tokens_without_a_score_are_a_failure_of_tokens() -> None:
    tokens = [good(10 + index) for index in range(30)]
    step = step_of(response(*tokens, Token(id=END, status=PositionStatus.SPECIAL)))
    [verdict] = [one for one in judged(step) if one.failure is Failure.TOKENS]
    assert (verdict.level, "0.0% of the responses that end" in verdict.found) == (Level.FAIL, True)
    assert "teacher.end_token_ids" in verdict.change


def test_tokens_without_teacher_probability_are_told() -> None:
    [verdict] = [
        one for one in judged(healthy(good(60, student=-2.0, teacher=-math.inf))) if one.failure is Failure.TOKENS
    ]
    assert (verdict.level, "1 token(s) in 32 no probability" in verdict.found) == (Level.FAIL, True)


def test_positions_that_do_not_meet_name_their_commonest_reason() -> None:
    lost = [Token(id=70 + index, status=PositionStatus.MISALIGNED) for index in range(8)]
    special = Token(id=90, status=PositionStatus.SPECIAL)
    [verdict] = [one for one in judged(healthy(*lost, special)) if one.failure is Failure.TOKENS]
    assert (verdict.level, "22.5%" in verdict.found, "(8 misaligned, 1 special)" in verdict.found) == (
        Level.WARN,
        True,
        True,
    )
    assert "teacher.segmentation" in verdict.change


def test_excluded_positions_are_not_held_against_the_tokenizers() -> None:
    excluded = [Token(id=70 + index, status=PositionStatus.EXCLUDED) for index in range(80)]
    assert found(healthy(*excluded)) == []


def test_nothing_scored_is_no_all_clear() -> None:
    lost = Token(id=5, status=PositionStatus.NON_FINITE)
    told = judged(step_of(response(lost, Token(id=END, status=PositionStatus.NON_FINITE))))
    assert [(one.failure, one.level) for one in told] == [
        (Failure.SIGNAL, Level.WARN),
        (Failure.PREFIXES, Level.WARN),
        (Failure.TOKENS, Level.FAIL),
    ]
    assert told[0].found == "nothing could be measured: no position has a score"


def test_what_was_not_measured_is_said() -> None:
    tokens = [good(10 + index, mass=math.nan, overlap=math.nan) for index in range(30)]
    verdict = judged(step_of(response(*tokens, good(END, mass=math.nan, overlap=math.nan))))[0]
    assert (verdict.level, "student_mass not measured" in verdict.found) == (Level.OK, True)


def test_failures_come_before_warnings() -> None:
    tokens = [good(10 + index, mass=0.7, support=(3, 4, 6, 7)) for index in range(30)]
    levels = [level for failure, level in found(step_of(response(*tokens))) if failure is Failure.SIGNAL]
    assert levels == [Level.FAIL, Level.WARN]


@pytest.mark.parametrize(
    ("bounds", "value", "level"),
    [
        (Bounds(warn=0.9, fail=0.5), 0.9, Level.OK),
        (Bounds(warn=0.9, fail=0.5), 0.89, Level.WARN),
        (Bounds(warn=0.9, fail=0.5), 0.5, Level.WARN),
        (Bounds(warn=0.9, fail=0.5), 0.49, Level.FAIL),
        (Bounds(warn=0.1, fail=0.2), 0.1, Level.OK),
        (Bounds(warn=0.1, fail=0.2), 0.21, Level.FAIL),
        (Bounds(warn=0.1, fail=math.inf), 1e9, Level.WARN),
        (Bounds(warn=0.1, fail=-math.inf), -1e9, Level.WARN),
        (Bounds(warn=0.1, fail=0.2), None, Level.OK),
    ],
)
def test_bounds_have_a_better_side(bounds: Bounds, value: float | None, level: Level) -> None:
    assert bounds.level(value) is level
