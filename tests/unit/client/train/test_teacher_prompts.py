"""The teacher reads every prompt before the first step, and scores nothing for it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Unpack

import pytest
from preceptor.wire import SegmentationPolicy
from preceptor_client.errors import GroupFailedError, InvalidRequestError, TeacherUnavailableError
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.data.bad_examples import BadExamples, Source
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.start import teacher_prompts
from preceptor_client.train.start.teacher_prompts import MAX_IN_FLIGHT, TeacherPrompts
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.types import Chat, ChatMessage, GroupScores, Prompt, StudentIds, Text

from tests.unit.client.train.fake_scorer import REPORT, FakeScorer, agreement_with

MESSAGES = (ChatMessage(role="user", content="hi"),)
FOREIGN = replace(REPORT, is_one_to_one=False, mapped_share=0.5)
PARTLY = replace(REPORT, mapped_share=0.9)


def _prompts(scorer: FakeScorer, config: RunConfig, student: Student, **more: Any) -> TeacherPrompts:
    agreement: Agreement = more.pop("agreement", agreement_with(scorer.teacher))
    bad = more.pop("bad", BadExamples())
    return TeacherPrompts(scorer, agreement=agreement, config=config.teacher, student=student, bad=bad)


def _tell_nobody(text: str) -> None:
    del text


def test_what_is_asked_is_what_will_be_scored_and_nothing_is_scored(
    scorer: FakeScorer, config: RunConfig, student: Student
) -> None:
    examples = [
        Example(index=0, prompt="a"),
        Example(index=1, prompt=MESSAGES),
        Example(index=2, prompt="c", teacher_prompt="d"),
        Example(index=3, prompt="c", teacher_prompt=MESSAGES),
    ]
    pairs: list[tuple[Source, Example]] = [("train", example) for example in examples]
    own: list[Prompt] = [Text("d"), Chat(MESSAGES)]
    for report, policy, asked in (
        (REPORT, SegmentationPolicy.MASK, own),
        (FOREIGN, SegmentationPolicy.CANONICAL, [Text("a"), Chat(MESSAGES), *own]),
    ):
        scorer.reads.clear()
        agreement = agreement_with(scorer.teacher, report=report, policy=policy)
        _prompts(scorer, config, student, agreement=agreement).check(pairs, notice=_tell_nobody)
        assert scorer.reads == asked
    scorer.reads.clear()
    agreement = agreement_with(scorer.teacher, report=PARTLY)
    _prompts(scorer, config, student, agreement=agreement).check(pairs[:1], notice=_tell_nobody)
    (prompt,) = scorer.reads
    assert isinstance(prompt, StudentIds)
    assert list(prompt.ids) == student.encode_prompt("a")
    assert scorer.calls == []


class SlowScorer(FakeScorer):
    """Answers when it is told to, and counts how many groups wait."""

    waiting: int = 0
    most: int = 0

    def submit(
        self, prompt: Prompt, responses: Sequence[Sequence[int]], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        answer = super().submit(prompt, responses, **options)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        slow = _Slow(self, answer)
        return slow


class _Slow(Future[GroupScores]):
    def __init__(self, scorer: SlowScorer, answer: Future[GroupScores]) -> None:
        super().__init__()
        self._scorer, self._answer = scorer, answer

    def result(self, timeout: float | None = None) -> GroupScores:
        self._scorer.waiting -= 1
        return self._answer.result(timeout)


def test_few_are_asked_about_at_once(student: Student, config: RunConfig) -> None:
    scorer = SlowScorer(teacher=student)
    examples = [Example(index=index, prompt="a", teacher_prompt=f"b{index}") for index in range(100)]
    _prompts(scorer, config, student).check([("train", one) for one in examples], notice=_tell_nobody)
    assert len(scorer.reads) == 100
    assert scorer.most == MAX_IN_FLIGHT
    assert scorer.waiting == 0


def test_check_that_takes_too_long_ends_and_says_so(
    scorer: FakeScorer, config: RunConfig, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_prompts, "MAX_SECONDS", -1.0)
    examples = [Example(index=index, prompt="a", teacher_prompt="b") for index in range(3)]
    (warning,) = _prompts(scorer, config, student).check([("train", one) for one in examples], notice=_tell_nobody)
    assert "the teacher read 0 of 3 prompts in" in warning
    assert scorer.reads == []


def test_refused_examples_are_left_out_and_an_outage_is_no_refusal(
    scorer: FakeScorer, config: RunConfig, student: Student
) -> None:
    examples = [Example(index=index, where=f"t:{index}", prompt="a", teacher_prompt=f"b{index}") for index in range(40)]
    pairs: list[tuple[Source, Example]] = [("train", one) for one in examples]
    refused = InvalidRequestError("no", field="prompt.text.text")
    scorer.refuses = lambda prompt: refused if isinstance(prompt, Text) and prompt.text.endswith("7") else None
    with pytest.raises(InvalidDataError, match=r"^t:7: the teacher refuses it: no"):
        _prompts(scorer, config, student).check(pairs, notice=_tell_nobody)
    bad = BadExamples(policy="skip", limit=9)
    assert _prompts(scorer, config, student, bad=bad).check(pairs, notice=_tell_nobody) == ()
    assert [one.where for one in bad.found] == ["t:7", "t:17", "t:27", "t:37"]
    scorer.refuses = lambda prompt: TeacherUnavailableError("gone")
    with pytest.raises(TeacherUnavailableError):
        _prompts(scorer, config, student, bad=bad).check(pairs, notice=_tell_nobody)


def test_prompt_that_the_teacher_fails_on_is_told_and_met_at_its_step(
    scorer: FakeScorer, config: RunConfig, student: Student, caplog: pytest.LogCaptureFixture
) -> None:
    examples = [Example(index=index, prompt="c", teacher_prompt=f"d{index}") for index in range(3)]
    failure = GroupFailedError("INTERNAL: the server failed", reason="INTERNAL", incident="7f3a")
    scorer.refuses = lambda prompt: failure if prompt == Text("d1") else None
    bad = BadExamples()
    with caplog.at_level("WARNING"):
        told = _prompts(scorer, config, student, bad=bad).check(
            [("train", one) for one in examples], notice=_tell_nobody
        )
    assert told == ("the teacher failed on 1 prompt(s); the first: example 1: INTERNAL: the server failed",)
    assert "teacher failed on a prompt: example=example 1 reason=INTERNAL incident='7f3a'" in caplog.text
    assert bad.left(examples, of="train") == examples
    assert len(scorer.reads) == 3
