"""Why `preceptor train` refuses student.dtype=bfloat16, measured: what AdamW does to weights that are kept so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.record.settings_file import to_toml
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.run.config import EvalConfig, RunConfig
from preceptor_client.train.student.student import prepare_student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.client.train.assembled import learner_for, one_task, position_weights, scoring_for, weighted_mean
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.runs import Settings

LEARNING_RATE = 2e-6
NUM_STEPS = 10
SPREAD = 0.05
"""Deviation of the weights, of the size that language models have."""


@pytest.fixture
def run_toml(settings: Settings, tmp_path: Path) -> str:
    settings["student"]["dtype"] = "bfloat16"
    path = tmp_path / "run.toml"
    path.write_text(to_toml(settings))
    return str(path)


def _scored(scorer: FakeScorer) -> list[ScoredEpisode]:
    student = prepare_student(tiny_llama(spread=SPREAD), tiny_tokenizer())
    scoring = scoring_for(
        scorer,
        teacher=TeacherConfig(address="a:1", top_k=8),
        objective=ObjectiveConfig(),
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=259,
    )
    rollouts = HfRollouts(student, config=RolloutConfig(prompts_per_step=4, max_new_tokens=12), seed=0)
    examples = [Example(index=index, prompt=prompt) for index, prompt in enumerate(("red", "green", "blue", "grey"))]
    for batch in rollouts.generate(examples, step=1):
        scoring.submit(batch, name="step-1")
    return scoring.gather()


def _moved(dtype: torch.dtype, scored: list[ScoredEpisode]) -> tuple[float, float]:
    """Of the weights with a gradient: the share that is another after the steps, and the mean change of all."""
    student = prepare_student(tiny_llama(spread=SPREAD), tiny_tokenizer())
    for parameter in student.model.parameters():
        parameter.data = parameter.data.to(dtype)
    loss = Loss(student, config=ObjectiveConfig(), temperature=1.0)
    update = learner_for(student, config=OptimizerConfig(learning_rate=LEARNING_RATE), loss=loss)
    before = [parameter.detach().clone() for parameter in student.model.parameters()]
    for step in range(1, NUM_STEPS + 1):
        terms = weighted_mean(position_weights(scored, reduction="position_mean"))
        assert update.apply(one_task(scored, terms), step=step)
    changes = [
        (parameter.detach().double() - old.double()).abs()[update.optimizer.state[parameter]["exp_avg"] != 0]
        for parameter, old in zip(student.model.parameters(), before, strict=True)
    ]
    change = torch.cat(changes)
    return float((change > 0).double().mean()), float(change.mean())


def test_in_ten_steps_hardly_a_weight_moves_where_all_of_them_should(scorer: FakeScorer) -> None:
    scored = _scored(scorer)
    exact_share, exact_change = _moved(torch.float32, scored)
    half_share, half_change = _moved(torch.bfloat16, scored)
    assert exact_share > 0.999
    # AdamW moves a weight by about its learning rate in each step.
    assert exact_change == pytest.approx(NUM_STEPS * LEARNING_RATE, rel=0.1)
    # Neighbours lie 2^-8 of a weight apart or more, so that only weights below about 5e-4 to 1e-3 reach another.
    assert half_share == pytest.approx(0.015, abs=0.01)
    assert half_change < exact_change / 5


def test_training_in_bfloat16_is_refused_with_the_reason_and_the_way_out(run_toml: str) -> None:
    with pytest.raises(InvalidSettingsError, match=r"(?m)^  student\.dtype=bfloat16 .* set student\.dtype=float32$"):
        load_settings(RunConfig, ["@", run_toml], program="preceptor train")


def test_where_nothing_is_trained_bfloat16_is_taken(run_toml: str) -> None:
    config = load_settings(EvalConfig, ["@", run_toml], program="preceptor eval")
    assert config.student.dtype == "bfloat16"
