"""An objective, an environment and a reward that a user wrote in a file of its own: the program takes them by name."""

# N = tokens of the student, V = vocabulary, K = support size

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM

from tests.integration.servers import RunningServer
from tests.integration.trainers import RUN_SECONDS, RunFiles, run_training, start_training, wait_for_steps
from tests.unit.client.train.reports import curve, figures

NUM_STEPS = 12
TOP_K = 16
REPORT_SECONDS = 60

PARTS = '''
from preceptor_client.objectives import Objective
from preceptor_client.train.environment.environment import Turn


class Symmetric(Objective):
    """Half of each KL inside the support, times a scale."""

    needs_normaliser = False
    min_support = 2

    def __init__(self, *, scale: float = 1.0):
        self.scale = scale

    def loss(self, at):
        p, q = at.student_logprobs_NK.log_softmax(1), at.teacher_logprobs_NK.log_softmax(1)
        return self.scale * ((p.exp() - q.exp()) * (p - q)).sum(1) / 2


class Echo:
    """Asks for a word, and says back how long the answer was."""

    def __init__(self, question: str):
        self.question = question
        self.turns = 0

    async def reset(self, example):
        return [{"role": "user", "content": f"{self.question} {example.index}"}]

    async def step(self, text):
        self.turns += 1
        if self.turns == 2:
            return Turn(reward=0.25, done=True, info={"turns": self.turns})
        return Turn(messages=[{"role": "user", "content": f"{len(text)} letters. Again."}])


class Vowels:
    """The share of vowels in the last turn."""

    def __init__(self, vowels: str = "aeiou"):
        self.vowels = vowels

    async def reward(self, episode, text):
        assert episode.info["turns"] == 2
        return sum(one in self.vowels for one in text) / max(1, len(text))
'''

SETTINGS = """
[student]
model = "{student}"

[teacher]
address = "{address}"
top_k = {top_k}
reproducible = true
segmentation = "as_is"
logprob_dtype = "f32"

[environment]
kind = "mine:Echo"
num_examples = 9
num_heldout = 3
options = {{ question = "Word" }}

[rollout]
prompts_per_step = 2
responses_per_prompt = 2
max_new_tokens = 8
batch_size = 4
max_turns = 3

[objective]
kind = "mine:Symmetric"
options = {{ scale = 2.0 }}

[credit]
kind = "grpo"
coefficient = 0.1

[[rewards]]
kind = "mine:Vowels"
weight = 3.0
options = {{ vowels = "aeiouy" }}

[optimizer]
learning_rate = 5e-3
micro_batch_size = 2

[run]
directory = "run"
num_steps = {num_steps}
seed = 5
checkpoint_every_steps = 4
save_episodes = true
"""


def _write(folder: Path, *, student: Path, address: str) -> RunFiles:
    """The parts beside the settings; the folder is in nobody's search path."""
    folder.mkdir()
    (folder / "mine.py").write_text(PARTS)
    files = RunFiles(settings=folder / "run.toml", directory=folder / "run")
    files.settings.write_text(SETTINGS.format(student=student, address=address, num_steps=NUM_STEPS, top_k=TOP_K))
    return files


def test_parts_from_a_users_file_are_trained_with_resumed_and_reported(
    hf_server: RunningServer, tiny_folder: Path, example_student: Path, tmp_path: Path
) -> None:
    whole, killed = (
        _write(tmp_path / name, student=example_student, address=hf_server.address) for name in ("whole", "killed")
    )
    # Both at once: each is waited for, and neither sees the other.
    alone, process = start_training(whole, cwd=tmp_path / "whole"), start_training(killed, cwd=tmp_path / "killed")
    wait_for_steps(killed, process, 6)  # two steps after a checkpoint: they are lost, and done again
    process.kill()
    process.communicate()
    assert len(killed.steps()) < NUM_STEPS
    output, _ = alone.communicate(timeout=RUN_SECONDS)
    assert alone.returncode == 0, output
    _assert_was_trained_with(whole)
    first = whole.steps()[0]
    expected = _first_loss(whole, student=example_student, teacher=tiny_folder)
    assert first["loss"] - first["credit_loss"] == pytest.approx(expected, rel=1e-4)  # models and columns are float32

    status, output = run_training(killed, cwd=tmp_path / "killed")
    assert status == 0, output
    assert [row["step"] for row in killed.steps()] == list(range(1, NUM_STEPS + 1))
    assert killed.losses() == whole.losses()
    assert killed.weights() == whole.weights()
    assert (killed.directory / "episodes.jsonl").read_text() == (whole.directory / "episodes.jsonl").read_text()

    _assert_is_reported(killed, folder=tmp_path / "killed")


def _assert_was_trained_with(files: RunFiles) -> None:
    """Each part has left what no built-in one would have."""
    losses = files.losses()
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    for line in (files.directory / "episodes.jsonl").read_text().splitlines():
        episode = json.loads(line)
        is_policy = [segment["is_policy"] for segment in episode["segments"]]
        assert is_policy == [True, False, True]
        assert episode["info"]["turns"] == 2
        of_reward = episode["info"]["rewards"]["mine:Vowels"]
        first, between, last = episode["reward"]
        assert (first, between, last) == (None, None, pytest.approx(0.25 + 3 * of_reward))
    rows = [json.loads(line) for line in (files.directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "heldout" and row["mean_reward"] >= 0.25] == [0, NUM_STEPS]
    assert load(files.weights())


@torch.no_grad()
def _first_loss(files: RunFiles, *, student: Path, teacher: Path) -> float:
    """The file's formula with its scale of 2, from whole distributions in float64: mean over the student's tokens."""
    models = [AutoModelForCausalLM.from_pretrained(folder).double() for folder in (student, teacher)]
    losses = []
    for line in (files.directory / "episodes.jsonl").read_text().splitlines():
        episode = json.loads(line)
        if episode["step"] > 1:
            continue
        ids, is_own = list(episode["prompt_ids"]), [False] * len(episode["prompt_ids"])
        for segment in episode["segments"]:
            ids += segment["ids"]
            is_own += [segment["is_policy"]] * len(segment["ids"])
        log_p_NV, log_q_NV = (
            model(torch.tensor([ids])).logits[0, :-1][torch.tensor(is_own[1:])].log_softmax(1) for model in models
        )
        top_NK = log_q_NV.topk(TOP_K).indices
        p_NK, q_NK = (one.gather(1, top_NK).softmax(1) for one in (log_p_NV, log_q_NV))
        losses.append(((p_NK - q_NK) * (p_NK / q_NK).log()).sum(1))
    return float(torch.cat(losses).mean())


def _assert_is_reported(files: RunFiles, *, folder: Path) -> None:
    page = files.directory / "report.html"
    page.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "preceptor_client.cli", "report", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=REPORT_SECONDS,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in curve(figures(page)["Reward"], "mean")] == list(range(1, NUM_STEPS + 1))
    text = page.read_text()
    assert "mine:Symmetric" in text
    assert "mine:Echo" in text
    assert "mine:Vowels" in text
