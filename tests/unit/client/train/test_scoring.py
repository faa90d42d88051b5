from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from preceptor.wire import SegmentationPolicy
from preceptor_client.errors import CorruptAnswerError, TeacherUnavailableError
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.prompt_source import PromptSource
from preceptor_client.train.teacher.scoring import OneTeacher
from preceptor_client.types import Chat, ChatMessage, StudentIds, Text

from tests.unit.client.train.assembled import scoring_for
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with

MESSAGES = (ChatMessage(role="user", content="hi"),)


def _scoring(scorer: FakeScorer, *, vocabulary_size: int = 259) -> OneTeacher:
    config = TeacherConfig(address="a:1", adapter="law", top_k=4, temperature=0.5, reproducible=True)
    return scoring_for(
        scorer,
        teacher=config,
        objective=ObjectiveConfig(),
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=vocabulary_size,
    )


def _batches(student: Student, *, num_prompts: int = 3) -> list[list[Episode]]:
    config = RolloutConfig(prompts_per_step=num_prompts, max_new_tokens=4, batch_size=4, responses_per_prompt=2)
    # The same example twice: two prompts of a step, and two groups.
    examples = [Example(index=0, prompt="abc")] * num_prompts
    return list(HfRollouts(student, config=config, seed=0).generate(examples, step=1))


def _episode(example: Example) -> Episode:
    view = StudentView(logprobs_T=np.zeros(1, np.float32), entropies_T=np.zeros(1, np.float32))
    return single_turn(
        example=example, slot=0, prompt_ids=(1, 2), response_ids=(3,), finish_reason="length", student=view
    )


def _submit(scoring: OneTeacher, batches: Sequence[Sequence[Episode]]) -> None:
    for batch in batches:
        scoring.submit(batch, name="step-1")


def test_every_rollout_comes_back_once_in_order_with_its_own_scores(student: Student, scorer: FakeScorer) -> None:
    batches = _batches(student)
    scoring = _scoring(scorer)
    _submit(scoring, batches)
    scored = scoring.gather()
    assert [one.episode for one in scored] == [rollout for batch in batches for rollout in batch]
    assert [len(one.scores.status_T) for one in scored] == [len(one.episode.response_ids) for one in scored]
    assert {(one.revision, one.teacher) for one in scored} == {("1", "tiny")}
    for one in scored:
        # The fake teacher reads the student's ids as they are.
        assert one.teacher_prompt_ids is not None
        assert tuple(one.teacher_prompt_ids) == one.episode.prompt_ids
    assert scoring.gather() == []


def test_each_prompt_is_one_group_with_the_settings_of_the_run(student: Student, scorer: FakeScorer) -> None:
    _submit(_scoring(scorer), _batches(student))
    assert [call.options["request_id"] for call in scorer.calls] == ["step-1/0", "step-1/1", "step-1/2"]
    assert all(len(call.responses) == 2 for call in scorer.calls)
    options = scorer.calls[0].options
    assert (options["top_k"], options["temperature"], options["batch_invariant"]) == (4, 0.5, True)
    assert (options["tokenizer_id"], options["segmentation"]) == ("registered", SegmentationPolicy.MASK)
    assert options["paper_token_ids"] == ()
    assert options["adapter"] == "law"


def test_groups_are_submitted_before_the_next_batch_is_written(student: Student, scorer: FakeScorer) -> None:
    config = RolloutConfig(prompts_per_step=2, max_new_tokens=2, batch_size=1)
    scoring = _scoring(scorer)
    examples = [Example(index=index, prompt="abc") for index in range(2)]
    seen = []
    for batch in HfRollouts(student, config=config, seed=0).generate(examples, step=1):
        seen.append(len(scorer.calls))
        scoring.submit(batch, name="step-1")
    assert seen == [0, 1]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("be brief", Text("be brief")), (MESSAGES, Chat(MESSAGES)), (None, StudentIds((1, 2)))],
)
def test_teacher_reads_its_own_prompt_or_the_students_exact_ids(prompt: ExamplePrompt | None, expected: object) -> None:
    example = Example(index=0, prompt="abc", teacher_prompt=prompt)
    assert PromptSource(is_one_to_one=True).before([_episode(example)]) == expected


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Example(index=0, prompt="abc"), Text("abc")),
        (Example(index=0, prompt=MESSAGES), Chat(MESSAGES)),
        (Example(index=0, prompt=MESSAGES, teacher_prompt="be brief"), Text("be brief")),
    ],
)
def test_teacher_with_other_ids_reads_the_text_or_conversation_itself(example: Example, expected: object) -> None:
    assert PromptSource(is_one_to_one=False).before([_episode(example)]) == expected


def test_rows_of_fewer_than_two_tokens_are_dropped_from_every_column_and_counted(
    student: Student, scorer: FakeScorer
) -> None:
    whole, parts = _scoring(scorer), _scoring(scorer)
    batches = _batches(student)
    _submit(whole, batches)
    full = whole.gather()
    # None left, one left, two left, all four.
    scorer.support_of = lambda position: (0, 1, 2, None)[position % 4]
    _submit(parts, batches)
    for one, other in zip(full, parts.gather(), strict=True):
        is_kept_N = one.scores.positions_N % 4 >= 2
        assert other.num_single_support == int((~is_kept_N).sum()) > 0
        assert np.array_equal(other.scores.positions_N, one.scores.positions_N[is_kept_N])
        assert np.array_equal(other.scores.sampled_logprobs_N, one.scores.sampled_logprobs_N[is_kept_N])
        assert one.scores.entropies_N is not None
        assert other.scores.entropies_N is not None
        assert np.array_equal(other.scores.entropies_N, one.scores.entropies_N[is_kept_N])
        mass_N = np.exp(other.scores.support_logprobs_NK).sum(axis=1) + np.exp(other.scores.log_tail_mass_N)
        assert mass_N == pytest.approx(1.0, abs=1e-5)  # fp32; rows that are shifted do not sum to 1
        assert np.array_equal(other.scores.support_ids_NK[:, 0], one.scores.support_ids_NK[is_kept_N, 0])
        assert np.array_equal(other.scores.status_T, one.scores.status_T)


def test_one_failed_group_fails_the_step_and_leaves_nothing_behind(student: Student, scorer: FakeScorer) -> None:
    scorer.error_at = lambda index: TeacherUnavailableError("gone") if index == 1 else None
    scoring = _scoring(scorer)
    _submit(scoring, _batches(student))
    with pytest.raises(TeacherUnavailableError):
        scoring.gather()
    assert scoring.gather() == []


def test_rows_are_dropped_also_where_the_teacher_computes_no_entropies(student: Student, scorer: FakeScorer) -> None:
    scorer.computes_entropies = False
    scorer.support_of = lambda position: (0, 1, 2, None)[position % 4]
    scoring = _scoring(scorer)
    _submit(scoring, _batches(student))
    for one in scoring.gather():
        assert one.scores.entropies_N is None
        assert len(one.scores.sampled_logprobs_N) == len(one.scores.positions_N)


def test_support_outside_the_students_vocabulary_is_refused(student: Student, scorer: FakeScorer) -> None:
    scoring = _scoring(scorer, vocabulary_size=3)
    _submit(scoring, _batches(student))
    with pytest.raises(CorruptAnswerError, match="outside the student's vocabulary of 3"):
        scoring.gather()
