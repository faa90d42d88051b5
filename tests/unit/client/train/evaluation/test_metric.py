from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.evaluation.evaluate import Answer, evaluate
from preceptor_client.train.evaluation.heldout import Heldout, MeanLoss
from preceptor_client.train.evaluation.metric import HeldoutMetrics, Metric
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.record.metrics import HELDOUT_NAMES
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scoring import Scoring

ANSWERED = [
    Example(index=0, prompt="say tan", answer="tan", other_answers=("brown",)),
    Example(index=1, prompt="say teal", answer="teal"),
]


def _answer(text: str, *, example: Example = ANSWERED[0]) -> Answer:
    return Answer(prompt="", expected="", answer=text, is_correct=False, example=example, response_ids=(1,))


class Gives:
    """A metric that gives what it is made with."""

    def __init__(self, given: Any) -> None:  # Any: what a user's metric may give by mistake
        self._given = given

    def measure(self, answers: Sequence[Answer]) -> Mapping[str, float]:
        if isinstance(self._given, Exception):
            raise self._given
        return self._given  # type: ignore[no-any-return]


class Lengths:
    """Of the answers, in tokens, and of their prompts, in characters."""

    def measure(self, answers: Sequence[Answer]) -> Mapping[str, float]:
        return {
            "tokens": sum(len(answer.response_ids) for answer in answers),
            "prompts": sum(len(str(answer.example.prompt)) for answer in answers),
        }


def _given(*given: object) -> dict[str, Any]:
    metrics: dict[str, Metric] = {f"evaluation.metrics[{place}]": Gives(one) for place, one in enumerate(given)}
    return dict(HeldoutMetrics(metrics).measure([_answer("x")]))


def test_match_is_the_share_that_matches_one_of_the_answers() -> None:
    metrics = HeldoutMetrics.of(
        [PartConfig(kind="match", options={"how": how}) for how in ("contains", "starts_with", "exact")]
    )
    answers = [_answer("a brown dog"), _answer("tan."), _answer("brown"), _answer("teal", example=ANSWERED[0])]
    assert metrics.measure(answers) == {"match_contains": 0.75, "match_starts_with": 0.5, "match_exact": 0.25}


@pytest.mark.parametrize("name", sorted(HELDOUT_NAMES))
def test_names_of_the_row_are_refused(name: str) -> None:
    with pytest.raises(InvalidPartError, match=rf"metrics\[1\] gave '{name}', which is the held-out row's own name"):
        _given({"x": 1.0}, {name: 1.0})


def test_two_metrics_may_not_give_one_name() -> None:
    assert _given({"x": 1}, {"y": True}) == {"x": 1.0, "y": 1.0}
    with pytest.raises(InvalidPartError, match=r"metrics\[1\] gave 'x', which is another metric's name"):
        _given({"x": 1.0}, {"x": 2.0})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (KeyError("lost"), r"failed: KeyError: 'lost'"),
        (0.5, r"gave 0\.5: return a dict of numbers by name"),
        ({"x": None}, r"gave None for 'x': return a number"),
        ({"x": "0.5"}, r"gave '0\.5' for 'x'"),
        ({3: 0.5}, r"gave 0\.5 for 3: return numbers by name"),
    ],
)
def test_metric_that_fails_or_gives_something_else_is_named(given: object, why: str) -> None:
    with pytest.raises(InvalidPartError, match=r"^evaluation\.metrics\[0\] " + why):
        _given(given)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_written_as_null_and_told(value: float, caplog: pytest.LogCaptureFixture) -> None:
    assert _given({"x": value, "y": 1.0}) == {"x": None, "y": 1.0}
    assert "a metric is not finite: key=evaluation.metrics[0] name=x" in caplog.text


def test_settings_name_metrics_and_a_mistake_is_told_with_its_key() -> None:
    with pytest.raises(InvalidPartError, match=r"evaluation\.metrics\[1\]\.options\.how: Field required"):
        HeldoutMetrics.of([PartConfig(kind="match", options={"how": "exact"}), PartConfig(kind="match")])
    with pytest.raises(InvalidPartError, match=r"evaluation\.metrics\[0\]\.kind='mtch' is not a metric: write one of"):
        HeldoutMetrics.of([PartConfig(kind="mtch")])


def _heldout(student: Student, *, examples: list[Example]) -> Heldout:
    metrics = (PartConfig(kind=f"{__name__}:Lengths"), PartConfig(kind="match", options={"how": "contains"}))
    return Heldout(
        student,
        examples=examples,
        config=EvaluationConfig(max_new_tokens=4, metrics=metrics),
        roll_out=lambda *_: iter(()),
        scoring=cast(Scoring, None),  # neither is asked: no loss is measured
        loss=cast(MeanLoss, None),
    )


def test_numbers_stand_in_the_heldout_row_beside_todays(student: Student) -> None:
    row = _heldout(student, examples=ANSWERED).measure(step=0, prompts="student")
    result = evaluate(student, ANSWERED, config=EvaluationConfig(max_new_tokens=4))
    assert row["tokens"] == sum(len(answer.response_ids) for answer in result.answers)
    assert row["tokens"] == result.mean_answer_length * 2
    assert row["prompts"] == len("say tan" + "say teal")
    assert (row["match_contains"], row["num_correct"], row["accuracy"]) == (0.0, 0, 0.0)
    assert row["answers"] == [
        {"prompt": one.prompt, "expected": one.expected, "answer": one.answer, "is_correct": False}
        for one in result.answers
    ]
    for answer in result.answers:
        assert student.decode(answer.response_ids) == answer.answer


def test_metrics_need_no_answers_in_the_data(student: Student) -> None:
    unanswered = [Example(index=0, prompt="say tan")]
    row = _heldout(student, examples=unanswered).measure(step=0, prompts="student")
    assert row["prompts"] == len("say tan")
    assert "accuracy" not in row
    assert "num_correct" not in row
