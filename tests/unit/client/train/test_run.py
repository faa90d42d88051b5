from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.record.metrics import read_rows
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.display import PlainDisplay
from preceptor_client.train.run.train import train
from rich.console import Console
from safetensors.torch import load_file

from tests.unit.client.train.fake_scorer import REPORT, FakeScorer
from tests.unit.client.train.tiny import tiny_student

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


@pytest.fixture
def heldout_settings(settings: Settings, tmp_path: Path) -> Settings:
    path = tmp_path / "heldout.jsonl"
    path.write_text(json.dumps({"prompt": "say tan", "teacher_prompt": "please say tan", "answer": "tan"}) + "\n")
    settings["data"]["heldout"] = str(path)
    settings["evaluation"]["teacher_prompts"] = True
    return settings


def test_run_leaves_a_model_metrics_log_settings_and_a_report(heldout_settings: Settings, scorer: FakeScorer) -> None:
    summary = train(RunConfig.model_validate(heldout_settings), scorer=scorer)
    assert summary.num_steps == 6
    assert summary.heldout_total == len(summary.samples) == 1
    assert summary.heldout_teacher is not None
    assert summary.model_folder == summary.directory / "checkpoints" / "step-000006"
    assert (summary.model_folder / "model.safetensors").is_file()
    kinds = [row["kind"] for row in read_rows(summary.directory / "metrics.jsonl")]
    assert kinds == ["heldout", "heldout_teacher", *["breakdown", "step"] * 6, "heldout"]
    for name in ("alignment.json", "config.toml", "train.log", "report.html", "tensorboard"):
        assert (summary.directory / name).exists(), name


def test_finished_run_started_again_changes_nothing(heldout_settings: Settings, scorer: FakeScorer) -> None:
    config = RunConfig.model_validate(heldout_settings)
    first = train(config, scorer=scorer)
    num_calls = len(scorer.calls)
    assert train(config, scorer=scorer) == first
    assert len(scorer.calls) == num_calls


def test_finished_run_is_continued_with_more_steps(settings: Settings, scorer: FakeScorer) -> None:
    train(RunConfig.model_validate(settings), scorer=scorer)
    settings["run"]["num_steps"] = 8
    summary = train(RunConfig.model_validate(settings), scorer=scorer)
    assert _steps(summary.directory) == list(range(1, 9))


def test_agreement_is_saved_logged_reported_and_its_warnings_are_shown_once(
    settings: Settings, scorer: FakeScorer
) -> None:
    scorer.report = replace(REPORT, warnings=("the merges differ",), differences=("merges",))
    file = io.StringIO()
    summary = train(
        RunConfig.model_validate(settings), scorer=scorer, display=PlainDisplay(Console(file=file, width=200))
    )
    assert file.getvalue().count("warning: the merges differ") == 1
    alignment = json.loads((summary.directory / "alignment.json").read_text())
    assert (alignment["relation"], alignment["segmentation"]) == ("identical", "mask")
    assert alignment["student_end_tokens"] == [{"id": 2, "text": "<|im_end|>"}]
    log = (summary.directory / "train.log").read_text()
    assert "relation=identical segmentation=mask" in log
    assert "WARNING preceptor_client.train.start.handshake the merges differ" in log
    assert "the merges differ" in (summary.directory / "report.html").read_text()


def test_unsuitable_teacher_stops_before_the_first_step(settings: Settings, scorer: FakeScorer) -> None:
    settings["teacher"]["name"] = "absent"
    with pytest.raises(UnsuitableTeacherError, match="absent"):
        train(RunConfig.model_validate(settings), scorer=scorer)
    assert scorer.calls == []


KILLED_RUN = """
import json, sys
import torch
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train
from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.tiny import tiny_student
torch.set_num_threads(1)
train(RunConfig.model_validate(json.load(sys.stdin)), scorer=FakeScorer(teacher=tiny_student(seed=1)))
"""


def test_killed_process_resumed_ends_with_bit_equal_weights(settings: Settings, scorer: FakeScorer) -> None:
    settings["run"] |= {"num_steps": 400, "checkpoint_every_steps": 1}
    directory = Path(settings["run"]["directory"])
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN], stdin=subprocess.PIPE, text=True)
    assert process.stdin
    process.stdin.write(json.dumps(settings))
    process.stdin.close()
    deadline = time.monotonic() + 120
    while len(_lines_of(directory)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    num_done = len(_lines_of(directory))
    assert 3 <= num_done < 400
    settings["run"] |= {"num_steps": num_done + 4, "checkpoint_every_steps": 50}
    resumed = train(RunConfig.model_validate(settings), scorer=scorer)
    settings["run"]["directory"] = str(directory.with_name("whole"))
    whole = train(RunConfig.model_validate(settings), scorer=FakeScorer(teacher=tiny_student(seed=1)))
    ours, theirs = (load_file(summary.model_folder / "model.safetensors") for summary in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert _steps(directory) == list(range(1, num_done + 5))


def _lines_of(directory: Path) -> list[str]:
    path = directory / "metrics.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def _steps(directory: Path) -> list[object]:
    rows = read_rows(directory / "metrics.jsonl")
    return [row["step"] for row in rows if row["kind"] == "step"]
