"""Hooks: a user's own code between two steps of a run. Calls them in order, and says which failed. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.errors import RunDirectoryError, StopRequestedError, TrainingStoppedError
from preceptor_client.train.parts import PartConfig, Seam
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

_FOLDER = "hooks"
"""Of a checkpoint: what the hooks keep, each in a folder of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run between two steps. Nothing is in flight: weights, optimizer and step agree, and a hook may change the
    student's weights in place."""

    step: int
    """Optimizer steps done."""
    num_steps: int
    """In all."""
    student: Student
    optimizer: torch.optim.Optimizer
    directory: Path
    """Of the run."""
    teachers: Mapping[str, object]
    """The client of each teacher by its name in the settings; `update_weights` of a client gives it new weights."""
    measure: Callable[[], Sequence[MetricRow]]
    """Measures the student as it is on the held-out examples: one row for each task that has some, none of which is
    written down."""

    def measured(self, name: str) -> float:
        """Measures, and gives one number of the rows, such as "loss" or "accuracy": the mean over the tasks. Raises
        ValueError where a row has no such number."""
        rows = self.measure()
        if not rows:
            raise ValueError(f"there is no held-out example to measure {name!r} on: set data.heldout")
        return sum(_number(row, name) for row in rows) / len(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(RunState):
    """A run after a step."""

    row: MetricRow
    """The step's row of metrics, as it was written down."""
    scored: Sequence[ScoredEpisode]
    """What the step was trained on, as the loss took it: with the credit of each token, where the run gives some."""


def _number(row: MetricRow, name: str) -> float:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = ", ".join(key for key, one in row.items() if type(one) in (int, float))
        raise ValueError(
            f"the held-out measurement has no number {name!r}, only {known}: for a loss set evaluation.loss, for an "
            "accuracy give the examples answers"
        )
    return value


class Hook(Protocol):
    """Runs between steps. One class, named in TOML: [[hooks]] kind = "package.module:Name". It may have any of the
    methods of `WholeHook` besides."""

    def on_step(self, done: StepDone) -> None:
        """After each step, before it is saved or measured. What it raises stops the run once the step is saved."""


class WholeHook(Hook, Protocol):
    """A hook with all that it may have."""

    def on_start(self, at: RunState) -> None:
        """Before the first step of this process; after `load`, where the run goes on."""

    def save(self, folder: Path) -> None:
        """Writes what it must know to go on into an empty folder, which becomes part of a checkpoint."""

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""


HOOK: Seam[Hook] = Seam(
    what="a hook",
    protocol=Hook,
    builtins={"ema_teacher": "preceptor_client.train.run.ema_teacher:EmaTeacher"},
)


class Hooks:
    """Those of a run, called in the order of the settings.

    An error of theirs becomes a TrainingStoppedError that names the hook. StopRequestedError and
    TeacherUnavailableError are left as they are: the run knows what to do then."""

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        """By key, for messages: "hooks[0].kind='ema_teacher'"."""
        self._hooks = hooks

    @classmethod
    def of(cls, configs: Sequence[PartConfig], *, key: str = "hooks") -> Self:
        """Those that the settings name. Raises InvalidPartError, which names the key."""
        keys = [f"{key}[{place}].kind" for place in range(len(configs))]
        return cls(
            {
                f"{at}={config.kind!r}": HOOK.make(config.kind, config.options, key=at)
                for at, config in zip(keys, configs, strict=True)
            }
        )

    def on_start(self, at: RunState) -> None:
        """Before the first step, after `load`."""
        for key, hook in self._hooks.items():
            if start := getattr(hook, "on_start", None):
                with _named(key, "on_start"):
                    start(at)

    def on_step(self, done: StepDone) -> None:
        """After a step."""
        for key, hook in self._hooks.items():
            with _named(key, f"on_step after step {done.step}"):
                hook.on_step(done)

    def save(self, checkpoint: Path) -> None:
        """Writes what the hooks keep into a checkpoint that is being written."""
        for place, (key, hook) in enumerate(self._hooks.items()):
            if save := getattr(hook, "save", None):
                folder = _folder(checkpoint, place)
                folder.mkdir(parents=True)
                with _named(key, "save"):
                    save(folder)

    def load(self, checkpoint: Path) -> None:
        """Gives the hooks what they kept in a checkpoint. Raises RunDirectoryError where it holds nothing of one."""
        for place, (key, hook) in enumerate(self._hooks.items()):
            if load := getattr(hook, "load", None):
                folder = _folder(checkpoint, place)
                if not folder.is_dir():
                    raise RunDirectoryError(
                        f"{checkpoint} holds nothing of {key}: it was written without this hook; choose another "
                        "run.directory, or remove the hook"
                    )
                with _named(key, "load"):
                    load(folder)


def _folder(checkpoint: Path, place: int) -> Path:
    return checkpoint / _FOLDER / str(place)


@contextmanager
def _named(key: str, what: str) -> Iterator[None]:
    try:
        yield
    except (StopRequestedError, TeacherUnavailableError):
        raise
    except Exception as error:  # a user's hook may fail with anything
        raise TrainingStoppedError(f"{key}: {what} failed: {message_of(error)}") from error
