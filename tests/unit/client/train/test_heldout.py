from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from preceptor.wire import PositionStatus
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Environment, Messages, Turn, prompt_messages
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.record.metrics import own_metrics
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.student.student import Student

from tests.unit.client.train.assembled import heldout_for
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds
WORDS = ("tan", "teal", "lime", "gold", "navy")
UNANSWERED = [Example(index=index, prompt=f"say {word}") for index, word in enumerate(WORDS)]


def _heldout(
    settings: Settings, student: Student, scorer: FakeScorer, *, examples: list[Example], loss: bool = True
) -> Heldout:
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"]["loss"] = loss
    config = RunConfig.model_validate(settings)
    agreement = agreement_with(scorer.teacher)
    return heldout_for(student, config=config, examples=examples, scorer=scorer, agreement=agreement)


def test_loss_equals_a_dense_computation_over_one_rollout_each(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    row = _heldout(settings, student, scorer, examples=UNANSWERED).measure(step=4, prompts="student")
    assert [call.options["request_id"] for call in scorer.calls] == [f"heldout-4/{slot}" for slot in range(5)]
    losses: list[float] = []
    for example, call in zip(UNANSWERED, scorer.calls, strict=True):
        prompt, (response,) = student.encode_prompt(example.prompt), call.responses
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            ours_TV, theirs_TV = (
                torch.log_softmax(one.model(ids).logits[0, len(prompt) - 1 : -1].double(), dim=1)
                for one in (student, scorer.teacher)
            )
        top = theirs_TV.topk(8, dim=1)
        log_p_TK = torch.log_softmax(ours_TV.gather(1, top.indices), dim=1)
        losses += (log_p_TK.exp() * (log_p_TK - torch.log_softmax(top.values, dim=1))).sum(1).tolist()
    # fp32 through two layers.
    assert row["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert (row["num_positions"], row["scored_share"], row["num_examples"]) == (len(losses), 1.0, 5)
    assert "accuracy" not in row


class RefusesSay2:
    """A reward that some examples lack what it needs for."""

    def reward(self, episode: Episode, text: str) -> float:
        if episode.example.index == 2:
            raise KeyError("rubric")
        return 0.5


def test_held_out_episode_that_fails_is_counted_and_named_in_the_log(
    settings: Settings, student: Student, scorer: FakeScorer, caplog: pytest.LogCaptureFixture
) -> None:
    settings["rewards"] = [{"kind": f"{__name__}:RefusesSay2"}]  # type: ignore[assignment]  # a table of a list
    row = _heldout(settings, student, scorer, examples=UNANSWERED).measure(step=4, prompts="student")
    assert (row["num_failed_episodes"], row["mean_reward"]) == (1, 0.5)
    assert len(scorer.calls) == 4
    assert "held-out episode failed: step=4 error=example 2 (episode 0): its reward" in caplog.text


class RewardsEvenExamples(Environment):
    """Gives a reward to the episodes of even examples alone."""

    async def reset(self, example: Example) -> Messages:
        self._reward = None if example.index % 2 else 0.5
        return prompt_messages(example)

    async def step(self, text: str) -> Turn:
        del text
        return Turn(reward=self._reward, done=True)


def test_held_out_episode_without_a_reward_is_left_out_of_the_mean_as_in_a_step(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    settings["environment"] = {"kind": f"{__name__}:RewardsEvenExamples"}
    row = _heldout(settings, student, scorer, examples=UNANSWERED, loss=False).measure(step=4, prompts="student")
    assert (row["num_failed_episodes"], row["mean_reward"]) == (0, 0.5)
    none = _heldout(settings, student, scorer, examples=UNANSWERED[1:2], loss=False).measure(step=4, prompts="student")
    assert none["mean_reward"] is None


def test_equal_weights_give_equal_draws_whatever_was_drawn_between(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    heldout = _heldout(settings, student, scorer, examples=UNANSWERED)
    torch.manual_seed(1)
    first = heldout.measure(step=0, prompts="student")
    between = torch.rand(1)
    second = heldout.measure(step=7, prompts="student")
    assert second["loss"] == first["loss"]
    assert [call.responses for call in scorer.calls[:5]] == [call.responses for call in scorer.calls[5:]]
    torch.manual_seed(1)
    assert torch.rand(1) == between
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_answers_are_measured_beside_the_loss_where_there_are_some(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    answered = [Example(index=0, prompt="say tan", answer="tan")]
    row = _heldout(settings, student, scorer, examples=answered).measure(step=0, prompts="student")
    assert {"accuracy", "num_correct", "mean_answer_length", "answers", "loss"} <= row.keys()
    plain = _heldout(settings, student, scorer, examples=answered, loss=False).measure(step=0, prompts="student")
    assert "loss" not in plain
    assert plain["answers"] == row["answers"]


def test_no_number_of_the_rows_own_passes_for_a_metric_of_the_users(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    settings["rewards"] = [{"kind": "match"}]  # type: ignore[assignment]  # a table of a list
    answered = [Example(index=0, prompt="say tan", answer="tan")]
    row = _heldout(settings, student, scorer, examples=answered).measure(step=0, prompts="student")
    assert {"accuracy", "loss", "mean_reward"} <= row.keys()
    assert own_metrics(row) == {}


def test_answers_must_be_there_for_all_or_for_none(settings: Settings, student: Student, scorer: FakeScorer) -> None:
    some = [Example(index=0, prompt="say tan", answer="tan"), Example(index=1, prompt="say teal")]
    with pytest.raises(InvalidDataError, match="example 1 has no answer"):
        _heldout(settings, student, scorer, examples=some).measure(step=0, prompts="student")
    with pytest.raises(InvalidDataError, match=r"example 0 has no answer .*evaluation\.loss"):
        _heldout(settings, student, scorer, examples=UNANSWERED, loss=False).measure(step=0, prompts="student")


def test_positions_without_score_are_left_out_of_the_mean(
    settings: Settings, student: Student, scorer: FakeScorer
) -> None:
    scorer.status_of = lambda position: PositionStatus.SPECIAL
    row = _heldout(settings, student, scorer, examples=UNANSWERED).measure(step=0, prompts="student")
    assert (row["loss"], row["num_positions"], row["scored_share"]) == (None, 0, 0.0)
