"""Trains what stands in examples/ as a user would: its settings beside a run's own, a real server, a tiny student."""

from __future__ import annotations

import contextlib
import json
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from preceptor.settings import load_settings
from preceptor_client.train.learner.checkpoint_folders import latest_checkpoint
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.record.metrics import MetricRow, read_rows
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.hooks import StepDone
from preceptor_client.train.run.train import train
from preceptor_client.train.teacher.scored import ScoredEpisode
from safetensors.torch import load_file

from tests.integration.trainers import WORDS

EXAMPLES = Path(__file__).parents[2] / "examples"
SETTINGS_MARK = "Settings:"
ANSWERS = list("abcdefghijklmnopqrstuvwxyz")
"""A student that writes random bytes gives about every second time one of them."""

RUN = """
[student]
model = "{student}"

[teacher]
address = "{address}"
top_k = 16
reproducible = true
patience_seconds = 60

[data]
train = "{train}"
heldout = "{heldout}"

[rollout]
prompts_per_step = 2
responses_per_prompt = 4
max_new_tokens = 12
batch_size = 8
top_p = 1.0

[optimizer]
learning_rate = 5e-3
micro_batch_size = 8

[evaluation]
max_new_tokens = 4

[run]
directory = "{directory}"
num_steps = {num_steps}
seed = 7
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedExample:
    """What a run left."""

    directory: Path
    rows: list[MetricRow]
    """Of its steps."""
    heldout_rows: list[MetricRow]
    steps: list[StepDone]
    """As a hook saw them. The student is as the last one left it."""
    weights_change: float
    """Largest change of one of the student's weights over the run."""

    @property
    def scored(self) -> list[ScoredEpisode]:
        """The episodes of all steps, as the loss took them."""
        return [one for step in self.steps for one in step.scored]

    @property
    def advantages(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Those of all scored tokens, in the order of `scored`."""
        columns = [one.advantages_N for one in self.scored]
        return np.concatenate([column for column in columns if column is not None])


class Recorder:
    """A hook that keeps every step."""

    steps: ClassVar[list[StepDone]] = []

    def on_step(self, done: StepDone) -> None:
        self.steps.append(done)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRuns:
    """Trains examples, each in a folder of its own."""

    folder: Path
    student: Path
    """Folder of the model to train."""
    address: str
    """Of the server that [teacher] asks."""

    def train(
        self,
        name: str,
        *,
        put: Mapping[str, str] | None = None,
        also: str = "",
        run: str = "run",
        num_steps: int = 2,
    ) -> TrainedExample:
        """Trains examples/`name`.py, or .toml. `put` replaces texts of its settings, such as the address of a teacher,
        by others; `also` is TOML of the test, which beats the example's; `run` names the folder of the run."""
        files = [self.run_file(run, num_steps=num_steps), self.folder / f"{run}-{name}.toml"]
        files[1].write_text(_put(settings_text(example_file(name)), put or {}))
        if also:
            files.append(self.folder / f"{run}-also.toml")
            files[2].write_text(also)
        # As `cd examples; preceptor train @ run.toml @ example.toml` does.
        with contextlib.chdir(EXAMPLES):
            arguments = [argument for file in files for argument in ("@", str(file))]
            config = load_settings(RunConfig, arguments, program="test")
            recorder = PartConfig(kind=f"{__name__}:Recorder")
            config = config.model_copy(update={"hooks": (*config.hooks, recorder)})
            Recorder.steps.clear()
            directory = train(config).directory
        rows = [*read_rows(directory / "metrics.jsonl")]
        return TrainedExample(
            directory=directory,
            rows=[row for row in rows if row["kind"] == "step"],
            heldout_rows=[row for row in rows if row["kind"] == "heldout"],
            steps=list(Recorder.steps),
            weights_change=self._change(directory),
        )

    def run_file(self, run: str = "run", *, num_steps: int = 2) -> Path:
        """The settings of a run, beside its data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for which, words in (("train", WORDS[:9]), ("heldout", WORDS[9:])):
            prompts = [word if index % 2 else [{"role": "user", "content": word}] for index, word in enumerate(words)]
            lines = [json.dumps({"prompt": prompt, "answer": ANSWERS}) + "\n" for prompt in prompts]
            (self.folder / f"{which}.jsonl").write_text("".join(lines))
        path = self.folder / f"{run}.toml"
        path.write_text(
            RUN.format(
                student=self.student,
                address=self.address,
                train=self.folder / "train.jsonl",
                heldout=self.folder / "heldout.jsonl",
                directory=self.folder / run,
                num_steps=num_steps,
            )
        )
        return path

    def _change(self, directory: Path) -> float:
        newest = latest_checkpoint(directory)
        assert newest is not None
        (trained,) = newest.rglob("model.safetensors")
        before, after = load_file(self.student / "model.safetensors"), load_file(trained)
        assert before.keys() == after.keys()
        return max(float(torch.max(torch.abs(after[name] - before[name]))) for name in before)


def example_files() -> list[Path]:
    """Every example."""
    return sorted([*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.toml")])


def example_file(name: str) -> Path:
    """The one of that name."""
    (path,) = [path for path in example_files() if path.stem == name]
    return path


def settings_text(path: Path) -> str:
    """The TOML of an example: all of a .toml file; of a .py file what is indented behind "Settings:" in its
    docstring."""
    text = path.read_text()
    if path.suffix == ".toml":
        return text
    docstring = text.split('"""')[1]
    _, found, settings = docstring.partition(f"\n{SETTINGS_MARK}\n")
    assert found, f"{path.name}: its docstring has no line {SETTINGS_MARK!r}"
    lines = settings.splitlines()
    assert all(line.startswith("    ") or not line for line in lines), f"{path.name}: settings are not indented"
    settings = textwrap.dedent(settings)
    assert tomllib.loads(settings), f"{path.name}: has no settings"
    return settings


def _put(text: str, put: Mapping[str, str]) -> str:
    for old, new in put.items():
        assert old in text, f"the example's settings do not hold {old!r}"
        text = text.replace(old, new)
    return text
