"""Whole runs with credit, weights and parts of a user's own, as their settings name them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preceptor_client.train.errors import InvalidWeightsError
from preceptor_client.train.objective.credit import teacher_gap
from preceptor_client.train.record.metrics import read_rows
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.hooks import StepDone
from preceptor_client.train.run.train import train

from tests.unit.client.train.fake_scorer import FakeScorer

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds
OWN = "tests.unit.client.train.objective.own"


def _losses(settings: Settings, scorer: FakeScorer, **changes: Any) -> list[float]:
    config = RunConfig.model_validate(settings | changes)
    train(config, scorer=scorer)
    rows = read_rows(Path(config.run.directory) / "metrics.jsonl")
    return [row["loss"] for row in rows if row["kind"] == "step" and isinstance(row["loss"], float)]


def test_the_teachers_gap_as_credit_alone_is_the_sampled_token(
    settings: Settings, scorer: FakeScorer, tmp_path: Path
) -> None:
    """The same loss by two ways, up to where its parts are rounded."""
    settings["rollout"]["top_p"] = 1.0
    settings["run"] |= {"num_steps": 3, "directory": str(tmp_path / "a")}
    expected = _losses(settings, scorer, objective={"kind": "sampled_token"})
    settings["run"]["directory"] = str(tmp_path / "b")
    credit = {"kind": "teacher_gap", "dual_clip": 3.0}
    found = _losses(settings, scorer, objective={"coefficient": 0.0}, credit=credit)
    assert len(expected) == 3
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_run_goes_and_goes_on_with_parts_of_its_own(settings: Settings, scorer: FakeScorer) -> None:
    """A resumed run finds the same parts and options in its config.toml."""
    own = {
        "objective": {
            "kind": f"{OWN}:LateReverseKl",
            "options": {"scale": 2.0},
            "support": f"{OWN}:StudentsFirst",
            "support_options": {"num_tokens": 4},
            "reduction": "fixed_scale",
            "reduction_scale": 36,
        },
        "weights": {"kind": f"{OWN}:EvenTurns"},
        "credit": {"kind": "teacher_gap", "coefficient": 0.1},
    }
    settings["run"]["num_steps"] = 2
    first = _losses(settings, scorer, **own)
    settings["run"]["num_steps"] = 3
    assert len(first) == 2
    assert _losses(settings, scorer, **own)[:2] == first
    assert all(call.options["candidate_ids"] is not None for call in scorer.calls)


def test_a_run_without_rewards_names_the_credit_that_needs_them(settings: Settings, scorer: FakeScorer) -> None:
    with pytest.raises(InvalidWeightsError, match=r"credit\.kind=grpo needs a reward"):
        _losses(settings, scorer, credit={"kind": "grpo"})


class Watching:
    """Keeps what each step was trained on."""

    steps: list[StepDone] = []  # noqa: RUF012  of the class: the run makes the object

    def on_step(self, done: StepDone) -> None:
        self.steps.append(done)


@pytest.fixture
def watched() -> Iterator[list[StepDone]]:
    yield Watching.steps
    Watching.steps.clear()


def test_a_hook_sees_the_credit_that_the_step_was_trained_on(
    settings: Settings, scorer: FakeScorer, watched: list[StepDone]
) -> None:
    settings["run"]["num_steps"] = 1
    _losses(settings, scorer, credit={"kind": "teacher_gap"}, hooks=[{"kind": f"{__name__}:Watching"}])
    (done,) = watched
    assert len(done.scored) == 6
    for one in done.scored:
        assert one.advantages_N is not None
        np.testing.assert_array_equal(one.advantages_N, teacher_gap(one))
        assert np.abs(one.advantages_N).min() > 0
