"""Every objective and support, trained against a real server: does the student come closer to the teacher?"""

# T = tokens, V = vocabulary

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.record.metrics import read_rows
from preceptor_client.train.record.rollout_log import read_rollouts
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.display import SilentDisplay
from preceptor_client.train.run.train import train
from transformers import AutoModelForCausalLM

from tests.integration.servers import RunningServer, running_server
from tests.integration.trainers import write_run
from tests.tiny import save_tiny, tiny_llama

NUM_STEPS = 6


class Warnings(SilentDisplay):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warning(self, text: str) -> None:
        self.texts.append(text)


def _run(
    tmp_path: Path, server: RunningServer, objective: dict[str, Any], *, display: SilentDisplay | None = None
) -> Path:
    """Trains the student of another seed; returns its folder."""
    student = save_tiny(tmp_path / "student", tiny_llama(seed=1, spread=0.3))
    files = write_run(tmp_path, student=student, address=server.address, num_steps=NUM_STEPS)
    settings = tomllib.loads(files.settings.read_text()) | {"objective": objective}
    # Enough samples for the losses that estimate by sampling.
    settings["rollout"] |= {"top_p": 1.0, "batch_size": 32, "prompts_per_step": 8, "responses_per_prompt": 8}
    settings["optimizer"]["micro_batch_size"] = 32
    settings["run"]["sample_rollouts"] = 2
    return train(RunConfig.model_validate(settings), display=display or SilentDisplay()).model_folder


@torch.no_grad()
def _reverse_kl(student: Path, teacher: Path) -> float:
    """Mean over the positions of a fixed random text, over the whole vocabulary."""
    ids = torch.randint(3, 259, (4, 48), generator=torch.Generator().manual_seed(0))
    log_p_TV, log_q_TV = (
        AutoModelForCausalLM.from_pretrained(folder)(ids).logits.double().log_softmax(-1)
        for folder in (student, teacher)
    )
    return float((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).mean())


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "lsm"},
        {"kind": "lsm", "support": "teacher_top_p", "support_options": {"top_p": 0.5}},
        {"kind": "lsm", "support": "student", "include_sampled": True},
        {"kind": "lsm", "extrapolation": 1.25},
        {"kind": "lsm", "reduction": "sequence_mean"},
        {"kind": "tail_bucket", "support": "union"},
        {"kind": "generalised_kl", "support": "union", "include_sampled": True},
        {"kind": "full_vocabulary"},
        {"kind": "forward"},
        {"kind": "forward", "options": {"outside": "renormalise"}, "support": "union"},
        {"kind": "jsd", "options": {"beta": 0.3}},
        {"kind": "stop_gradient", "support": "student"},
        {"kind": "sampled_token"},
        {"kind": "ema_pg", "support": "student"},
    ],
    ids=lambda objective: " ".join(map(str, objective.values())),
)
def test_student_comes_closer_to_the_teacher(
    objective: dict[str, Any], hf_server: RunningServer, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = _run(tmp_path, hf_server, objective)
    before = _reverse_kl(tmp_path / "student", tiny_folder)
    assert _reverse_kl(folder, tiny_folder) < 0.97 * before
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "step"] == list(range(1, NUM_STEPS + 1))
    assert all(isinstance(row["student_mass"], float) for row in rows if row["kind"] == "step")
    assert {row["step"] for row in rows if row["kind"] == "breakdown"} == set(range(1, NUM_STEPS + 1))
    rollouts = read_rollouts(tmp_path / "run" / "rollouts.jsonl")
    assert [row["step"] for row in rollouts] == [step for step in range(1, NUM_STEPS + 1) for _ in range(2)]
    assert all(token["loss"] is not None for row in rollouts for token in row["tokens"] if token["status"] == "ok")
    assert (tmp_path / "run" / "report.html").stat().st_size > 1_000_000


def test_the_loss_that_collapses_says_so_before_it_starts(hf_server: RunningServer, tmp_path: Path) -> None:
    display = Warnings()
    _run(tmp_path, hf_server, {"kind": "truncated"}, display=display)
    assert any("known to collapse" in text for text in display.texts)


def test_more_tokens_than_the_server_gives_are_refused_before_the_first_step(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["--engine.model", str(tiny_folder), "--limits.max-top-k", "64"]
    match = r"limit is 64: start it with --limits\.max-top-k=259"
    with (
        running_server(tmp_path / "server", *arguments) as server,
        pytest.raises(UnsuitableTeacherError, match=match),
    ):
        _run(tmp_path, server, {"kind": "full_vocabulary"})
