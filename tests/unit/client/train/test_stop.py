"""A run that is asked to stop, at every moment of it: what it saves, and that it goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import pytest
import torch
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Turn
from preceptor_client.train.errors import StopRequestedError
from preceptor_client.train.learner.checkpoint_folders import latest_checkpoint
from preceptor_client.train.record.metrics import MetricRow, read_rows
from preceptor_client.train.rollout.calls import call_all
from preceptor_client.train.rollout.environments import LiveEnvironment
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.display import SilentDisplay
from preceptor_client.train.run.train import train
from preceptor_client.train.run.trainer import Trainer
from preceptor_client.train.stop import StopRequest
from preceptor_client.types import GroupScores, Prompt

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.runs import Runs

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds

HELDOUT = [Example(index=9, prompt="say tan", teacher_prompt="tan, please", answer="tan")]
NUM_MOMENTS = 18
"""At which the run is stopped, spread evenly over its forwards, the first and the last among them."""
PROMPT_SECONDS = 20.0
"""Longest that a stop may take in a test, where nothing of it takes a second: the machine is shared."""


@pytest.fixture
def runs(settings: Settings, scorer: FakeScorer) -> Iterator[Runs]:
    runs = Runs(settings, scorer)
    yield runs
    runs.close()


@pytest.fixture
def measured(settings: Settings) -> Settings:
    """All kinds of measurements, at step 0, within the run, and at its end."""
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"] |= {"every_steps": 2, "teacher_prompts": True, "loss": True}
    return settings


@dataclass
class AsksAtForward:
    """Asks at one of the forwards of a run, which it counts: of rollouts, of measurements and of updates."""

    trainer: Trainer
    at: int
    num_seen: int = 0

    def __post_init__(self) -> None:
        self.trainer.student.base.register_forward_pre_hook(self._see)

    def _see(self, *_: object) -> None:
        if self.num_seen == self.at:
            self.trainer.stop.ask()
        self.num_seen += 1


@dataclass
class SilentTeacher(FakeScorer):
    """Answers so many groups, and no more."""

    num_answers: int = 0
    unanswered: list[Future[GroupScores]] = field(default_factory=list)

    def submit(self, prompt: Prompt, responses: Any, **options: Unpack[ScoreOptions]) -> Future[GroupScores]:
        if len(self.calls) < self.num_answers:
            return super().submit(prompt, responses, **options)
        self.unanswered.append(Future())
        return self.unanswered[-1]


def _weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.student.model.parameters()]


def _are_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def _rows(settings: Settings, name: str) -> list[MetricRow]:
    """What the file holds, without how long things took."""
    path = Path(settings["run"]["directory"]).parent / name / "metrics.jsonl"
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in read_rows(path)]


def test_stopped_at_any_forward_a_run_goes_on_as_if_nothing_had_happened(runs: Runs, measured: Settings) -> None:
    whole = runs.trainer(name="whole", heldout=HELDOUT)
    seen = AsksAtForward(whole, at=-1)
    whole.run()
    saved_at: set[int] = set()
    for moment in [round(index * (seen.num_seen - 1) / NUM_MOMENTS) for index in range(NUM_MOMENTS + 1)]:
        name = f"at-{moment}"
        first = runs.trainer(name=name, heldout=HELDOUT, checkpoint_every_steps=50, stop=StopRequest())
        AsksAtForward(first, at=moment)
        with pytest.raises(StopRequestedError):
            first.run()
        checkpoint = latest_checkpoint(first.config.directory)
        assert (checkpoint is None) == (first.step == 0), moment
        saved_at.add(first.step)
        second = runs.trainer(name=name, heldout=HELDOUT, checkpoint_every_steps=50, stop=StopRequest())
        assert second.step == first.step, moment
        assert _are_equal(_weights(second), _weights(first)), moment
        second.run()
        assert _are_equal(_weights(second), _weights(whole)), moment
        assert _rows(measured, name) == _rows(measured, "whole"), moment
    assert saved_at == set(range(7)), "the moments are spread over the whole run"


def test_asked_in_the_rollouts_a_step_is_given_up_and_asked_in_the_update_it_is_finished(runs: Runs) -> None:
    one_step = AsksAtForward(runs.trainer(name="one"), at=-1)
    one_step.trainer.train_step()
    early = runs.trainer(name="early", stop=StopRequest())
    AsksAtForward(early, at=one_step.num_seen)  # the first of step 2
    with pytest.raises(StopRequestedError, match=r"step 1 of 6 is saved in .*step-000001; the same command continues"):
        early.run()
    late = runs.trainer(name="late", stop=StopRequest())
    late.learner.optimizer.register_step_pre_hook(lambda *_: late.stop.ask() if late.step == 1 else None)
    with pytest.raises(StopRequestedError, match=r"step 2 of 6 is saved in .*step-000002; the same command continues"):
        late.run()


def test_teacher_that_does_not_answer_is_waited_for_no_longer(runs: Runs, scorer: FakeScorer) -> None:
    # Three prompts a step: step 1 is scored, and of step 2 one group.
    silent = SilentTeacher(teacher=scorer.teacher, num_answers=4)
    trainer = runs.trainer(stop=StopRequest(), scorer=silent)
    threading.Timer(1.0, trainer.stop.ask).start()
    started = time.monotonic()
    with pytest.raises(StopRequestedError, match=r"step 1 of 6 is saved in"):
        trainer.run()
    assert time.monotonic() - started < PROMPT_SECONDS
    assert len(silent.unanswered) == 2
    assert all(future.cancelled() for future in silent.unanswered)


def test_before_the_first_step_is_done_there_is_nothing_to_save(runs: Runs, scorer: FakeScorer) -> None:
    stop = StopRequest()
    stop.ask()
    trainer = runs.trainer(stop=stop)
    with pytest.raises(StopRequestedError, match="there is nothing to save, and the same command starts the run"):
        trainer.run()
    assert scorer.calls == []
    assert not (trainer.config.directory / "checkpoints").exists()


def test_asked_where_nothing_is_left_to_do_the_run_ends_as_always(settings: Settings, scorer: FakeScorer) -> None:
    class AsksAtTheEnd(SilentDisplay):
        def step(self, row: MetricRow) -> None:
            if row["step"] == 6:
                stop.ask()

    stop = StopRequest()
    summary = train(RunConfig.model_validate(settings), scorer=scorer, display=AsksAtTheEnd(), stop=stop)
    assert summary.num_steps == 6
    assert (summary.directory / "report.html").is_file()


def test_request_is_heeded_while_there_is_something_to_save(runs: Runs) -> None:
    trainer = runs.trainer(num_steps=1, stop=StopRequest())
    heeded: list[bool] = []
    trainer.student.base.register_forward_pre_hook(lambda *_: heeded.append(trainer.stop.is_heeded))
    assert not trainer.stop.is_heeded
    trainer.run()
    assert set(heeded) == {True}
    assert not trainer.stop.is_heeded


def test_request_is_made_once_and_told_to_whoever_asked_to_be_told() -> None:
    stop, told = StopRequest(), list[str]()
    stop.on_ask(lambda: told.append("before"))
    stop.check()
    for _ in range(3):
        stop.ask()
    stop.on_ask(lambda: told.append("after"))
    assert told == ["before", "after"]
    with pytest.raises(StopRequestedError):
        stop.check()


def test_answer_that_is_there_is_taken_and_errors_stay_what_they_are() -> None:
    stop = StopRequest()
    good: Future[int] = Future()
    good.set_result(7)
    assert stop.result_of(good) == 7
    bad: Future[int] = Future()
    bad.set_exception(LookupError("gone"))
    with pytest.raises(LookupError, match="gone"):
        stop.result_of(bad)


class Hanging:
    """An environment that never answers."""

    async def reset(self, example: Example) -> list[dict[str, str]]:
        await asyncio.sleep(3600)
        return []

    async def step(self, text: str) -> Turn:
        return Turn(done=True)


def test_an_environment_that_hangs_is_waited_for_no_longer() -> None:
    stop = StopRequest()
    live = LiveEnvironment(Hanging, name="one", timeout_seconds=3600, stop=stop)
    pending = live.reset(Example(index=0, prompt="a"))
    threading.Timer(0.2, stop.ask).start()
    started = time.monotonic()
    with pytest.raises(StopRequestedError):
        pending.result()
    assert time.monotonic() - started < PROMPT_SECONDS


def test_a_reward_that_hangs_is_waited_for_no_longer() -> None:
    stop, gate = StopRequest(), threading.Event()
    threading.Timer(0.2, stop.ask).start()
    started = time.monotonic()
    with pytest.raises(StopRequestedError):
        call_all([lambda: gate.wait(3600)], timeout_seconds=3600, max_concurrency=1, stop=stop)
    assert time.monotonic() - started < PROMPT_SECONDS
    gate.set()


def test_a_late_answer_raises_as_a_future_does() -> None:
    with pytest.raises(TimeoutError):
        StopRequest().result_of(Future(), timeout_seconds=0.01)
