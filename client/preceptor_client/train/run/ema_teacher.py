"""Hook "ema_teacher": the teacher is an exponential moving average of the student. Knows nothing of the loss."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from preceptor_client.train.run.hooks import RunState, StepDone
from preceptor_client.train.student.student import Student
from preceptor_client.types import WeightUpdate

_log = logging.getLogger(__name__)

_AVERAGE_FILE = "average.safetensors"
_STATE_FILE = "state.json"
_NUM_SAVES = 2
"""Checkpoints whose teacher's weights are kept: the newest, and the one before it should the newest not be finished."""


@runtime_checkable
class _Updates(Protocol):
    """The part of BlockingTeacherClient that gives a teacher new weights."""

    def update_weights(self, path: str, *, teacher: str, timeout_seconds: float) -> WeightUpdate: ...


class EmaTeacher:
    """Keeps average = decay * average + (1 - decay) * student in float32, starting with the student as it is at the
    start of the run; every so many steps it saves the average as a model and has the teacher take it.

    The average is checkpointed with the run. A run that goes on has the teacher take the weights that it had at the
    checkpoint, since it may have been given later ones, or been restarted with its first."""

    def __init__(
        self,
        decay: Annotated[float, Field(ge=0, lt=1)],
        every_steps: Annotated[int, Field(ge=1)],
        folder: str,
        name: str = "ema",
        teacher: str = "",
        name_on_server: str = "",
        timeout_seconds: Annotated[float, Field(gt=0)] = 600.0,
    ) -> None:
        """`folder`: the server's engine.weights_folder, as this machine sees it. Weights are written there as
        `name`-step-<n>: runs that share the folder need names of their own. `teacher`: its name in the settings; empty
        takes the only one. `name_on_server`: where the server hosts several."""
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"name={name!r} must be the name of a folder, without a path")
        self._decay = decay
        self._every_steps = every_steps
        self._folder = Path(folder).expanduser()
        self._name = name
        self._teacher = teacher
        self._name_on_server = name_on_server
        self._timeout_seconds = timeout_seconds
        self._average: dict[str, torch.Tensor] = {}
        self._client: _Updates | None = None
        self._serving = ""
        """Folder of the weights that the teacher has; empty where it has those that it was started with."""
        self._saved: deque[str] = deque(maxlen=_NUM_SAVES)

    def on_start(self, at: RunState) -> None:
        """Raises ValueError where the teacher or the folder is not there, or the average is of another model."""
        self._client = _client(at, name=self._teacher)
        if not self._folder.is_dir():
            raise ValueError(f"folder={str(self._folder)!r} is not there: give the server's engine.weights_folder")
        if not self._average:
            self._average = {name: one.detach().float().clone() for name, one in _parameters(at.student)}
            return
        own = {name: one.shape for name, one in _parameters(at.student)}
        if own != {name: one.shape for name, one in self._average.items()}:
            raise ValueError("the checkpoint's average is of a model with other weights: choose another run.directory")
        self._average = {name: one.to(at.student.device) for name, one in self._average.items()}
        if self._serving and not (self._folder / self._serving).is_dir():
            _log.warning("the teacher's weights are gone, it takes the average as it is: folder=%s", self._serving)
            self._write(at)
        if self._serving:
            self._hand_over(at)

    def on_step(self, done: StepDone) -> None:
        """As `Hook.on_step`."""
        with torch.no_grad():
            for name, parameter in _parameters(done.student):
                self._average[name].lerp_(parameter.float(), 1 - self._decay)
        if done.step % self._every_steps == 0:
            self._write(done)
            self._hand_over(done)

    def save(self, folder: Path) -> None:
        """As `Hook.save`."""
        save_file({name: one.contiguous() for name, one in self._average.items()}, folder / _AVERAGE_FILE)
        (folder / _STATE_FILE).write_text(json.dumps({"serving": self._serving}) + "\n", encoding="utf-8")
        self._saved.append(self._serving)

    def load(self, folder: Path) -> None:
        """As `Hook.load`."""
        self._average = load_file(folder / _AVERAGE_FILE)
        self._serving = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))["serving"]
        self._saved.append(self._serving)

    def _write(self, at: RunState) -> None:
        """Whole or not at all: the server never sees a folder that is being written."""
        target = self._folder / f"{self._name}-step-{at.step:06d}"
        temporary = target.with_name(f".writing-{target.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        with _as_weights(self._average, student=at.student):
            at.student.save(temporary)
        if target.exists():  # of a run that was killed after it
            shutil.rmtree(target)
        os.rename(temporary, target)
        self._serving = target.name

    def _hand_over(self, at: RunState) -> None:
        assert self._client is not None, "on_start was called"
        update = self._client.update_weights(
            self._serving, teacher=self._name_on_server, timeout_seconds=self._timeout_seconds
        )
        _log.info(
            "teacher took the average: step=%d revision=%s paused_ms=%.0f", at.step, update.revision, update.paused_ms
        )
        for old in self._folder.glob(f"{self._name}-step-*"):
            if old.name.removeprefix(f"{self._name}-step-").isdigit() and old.name not in {self._serving, *self._saved}:
                shutil.rmtree(old)


def _parameters(student: Student) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Tied weights once."""
    yield from student.module.named_parameters()


def _client(at: RunState, *, name: str) -> _Updates:
    known = ", ".join(repr(one) for one in at.teachers) or "none"
    if not name and len(at.teachers) != 1:
        raise ValueError(f"teacher is empty, and the run has {len(at.teachers)} teachers: name one of {known}")
    client = next(iter(at.teachers.values())) if not name else at.teachers.get(name)
    if client is None:
        raise ValueError(f"teacher={name!r} is none of the run's teachers: {known}")
    if not isinstance(client, _Updates):
        raise ValueError("the teacher takes no new weights: it is no client of a teacher server")
    return client


@contextmanager
def _as_weights(average: dict[str, torch.Tensor], *, student: Student) -> Iterator[None]:
    """For the block, the student's weights are the average. Their own storage comes back after it: a resumed run
    computes what the uninterrupted one did."""
    own = {name: parameter.data for name, parameter in _parameters(student)}
    try:
        for name, parameter in _parameters(student):
            parameter.data = average[name].to(parameter.dtype)
        yield
    finally:
        for name, parameter in _parameters(student):
            parameter.data = own[name]
