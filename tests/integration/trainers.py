"""Real `preceptor train` processes for tests, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.interruptible import heed_interrupts

RUN_SECONDS = 240
TrainHere = Callable[[Path], tuple[int, str]]
"""Trains by a file of settings. Exit status, and what was printed: where it failed, on standard error."""

WORDS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey", "gold", "cyan", "teal", "lime"]

SETTINGS = """
[student]
model = "{student}"

[teacher]
address = "{address}"
top_k = 16
reproducible = true
patience_seconds = 120

[data]
train = "{train}"
heldout = "{heldout}"

[rollout]
prompts_per_step = 4
max_new_tokens = 12
batch_size = 2

[optimizer]
learning_rate = 5e-3
micro_batch_size = 2

[evaluation]
max_new_tokens = 4

[run]
directory = "{directory}"
num_steps = {num_steps}
seed = 7
checkpoint_every_steps = 4
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The settings of a run, and where it writes."""

    settings: Path
    directory: Path

    def steps(self) -> list[dict[str, float]]:
        """The rows of metrics.jsonl that are steps."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        # A run that was killed may have left half a line behind.
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [row for row in rows if row["kind"] == "step"]

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.steps()]

    def weights(self) -> bytes:
        """The newest checkpoint's weights."""
        newest = max((self.directory / "checkpoints").glob("step-*"))
        return next(newest.rglob("model.safetensors")).read_bytes()


def write_run(folder: Path, *, student: Path, address: str, num_steps: int = 12, question: str = "Say {}") -> RunFiles:
    """Writes data and settings of a small run into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in (("train", WORDS[:9]), ("heldout", WORDS[9:])):
        lines = [
            {"prompt": [{"role": "user", "content": question.format(word)}], "answer": word}
            if index % 2
            else {"prompt": question.format(word), "teacher_prompt": f"Please: {question.format(word)}", "answer": word}
            for index, word in enumerate(words)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = RunFiles(settings=folder / "run.toml", directory=folder / "run")
    files.settings.write_text(
        SETTINGS.format(
            student=student,
            address=address,
            train=folder / "train.jsonl",
            heldout=folder / "heldout.jsonl",
            directory=files.directory,
            num_steps=num_steps,
        )
    )
    return files


def start_training(files: RunFiles, *options: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Starts `preceptor train @ run.toml`, from this folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "preceptor_client.cli", "train", "@", str(files.settings), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        cwd=cwd,
        preexec_fn=heed_interrupts,
    )


def run_training(files: RunFiles, *options: str, cwd: Path | None = None) -> tuple[int, str]:
    """Exit status and output of a whole run."""
    process = start_training(files, *options, cwd=cwd)
    try:
        output, _ = process.communicate(timeout=RUN_SECONDS)
    finally:
        process.kill()
        process.wait()
    return process.returncode, output


def wait_for_steps(files: RunFiles, process: subprocess.Popen[str], count: int) -> None:
    """Returns once the run has logged `count` steps."""
    deadline = time.monotonic() + RUN_SECONDS
    while len(files.steps()) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.01)
