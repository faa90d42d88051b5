"""What stands in examples/ does what its docstring says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from preceptor_client.train.objective.weights import PositionWeights
from preceptor_client.train.record.metrics import read_rows
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.rollouts import scored_rollout

EXAMPLES = Path(__file__).parents[4] / "examples"


def _example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_suffix_truncation_keeps_the_first_tokens() -> None:
    weigh = _example("suffix_truncation.py")["first_tokens"]
    scored: list[ScoredEpisode] = [scored_rollout(num_positions=num) for num in (3, 40)]
    short, long = weigh(scored)
    assert short.tolist() == [1, 1, 1]
    assert long.tolist() == [1] * 32 + [0] * 8


def test_a_run_trains_on_weighted_positions_and_logs_them_all(
    settings: dict[str, dict[str, Any]], scorer: FakeScorer, tmp_path: Path
) -> None:
    def run(name: str, weigh: PositionWeights | None) -> list[dict[str, Any]]:
        settings["run"] |= {"directory": str(tmp_path / name), "num_steps": 1}
        summary = train(RunConfig.model_validate(settings), scorer=scorer, weigh=weigh)
        return [dict(row) for row in read_rows(summary.directory / "metrics.jsonl") if row["kind"] == "step"]

    (plain,) = run("plain", None)
    (first,) = run("first", lambda scored: [(one.scores.positions_N < 2).astype(float) for one in scored])
    assert first["num_positions"] == plain["num_positions"]
    assert first["num_weighted_positions"] < plain["num_weighted_positions"] == plain["num_positions"]
    assert first["loss"] != pytest.approx(plain["loss"])
    assert first["gap"] == plain["gap"]
