from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.errors import InvalidPartError, RunDirectoryError, StopRequestedError, TrainingStoppedError
from preceptor_client.train.learner.checkpoint import save_checkpoint
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.run.hooks import HOOK, Hook, Hooks, RunState, StepDone
from preceptor_client.train.student.student import Student

from tests.unit.client.train.rollouts import scored_rollout

CALLS: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def step_done(
    student: Student, *, step: int = 1, teachers: Mapping[str, object] | None = None, directory: Path = Path("run")
) -> StepDone:
    return StepDone(
        step=step,
        num_steps=9,
        student=student,
        optimizer=torch.optim.SGD(student.model.parameters(), lr=0.1),
        directory=directory,
        teachers=teachers or {},
        measure=lambda: [{"kind": "heldout", "step": step, "accuracy": 0.5}],
        row={"kind": "step", "step": step, "loss": 0.25},
        scored=[scored_rollout(num_positions=2)],
    )


def started(done: StepDone) -> RunState:
    return RunState(**{name: getattr(done, name) for name in RunState.__dataclass_fields__})


class Plain:
    """A hook with what it must have, and no more."""

    def on_step(self, done: StepDone) -> None:
        CALLS.append(f"plain {done.step} {done.row['loss']} {done.measure()[0]['accuracy']} {len(done.scored)}")


class Whole:
    """A hook with everything."""

    def __init__(self, name: str = "whole") -> None:
        self._name = name
        self._num_steps = 0

    def on_start(self, at: RunState) -> None:
        CALLS.append(f"{self._name} starts at {at.step} with {self._num_steps}")

    def on_step(self, done: StepDone) -> None:
        self._num_steps += 1
        CALLS.append(f"{self._name} {done.step}")

    def save(self, folder: Path) -> None:
        (folder / "count").write_text(str(self._num_steps))

    def load(self, folder: Path) -> None:
        self._num_steps = int((folder / "count").read_text())


class Nothing:
    def on_start(self, at: RunState) -> None: ...


def _hooks() -> Hooks:
    return Hooks.of(
        [
            PartConfig(kind=f"{__name__}:Whole", options={"name": "first"}),
            PartConfig(kind=f"{__name__}:Plain"),
            PartConfig(kind=f"{__name__}:Whole"),
        ]
    )


def test_hooks_are_called_in_order_with_what_the_step_left(student: Student) -> None:
    hooks = _hooks()
    hooks.on_start(started(step_done(student, step=0)))
    hooks.on_step(step_done(student, step=1))
    assert CALLS == [
        "first starts at 0 with 0",
        "whole starts at 0 with 0",
        "first 1",
        "plain 1 0.25 0.5 1",
        "whole 1",
    ]


def test_one_measured_number_is_the_mean_over_the_tasks(student: Student) -> None:
    rows: list[MetricRow] = [{"kind": "heldout", "loss": 0.25, "accuracy": None}, {"kind": "heldout", "loss": 1}]
    assert replace(step_done(student), measure=lambda: rows).measured("loss") == 0.625
    with pytest.raises(ValueError, match=r"no number 'accuracy', only loss: for a loss set evaluation\.loss"):
        replace(step_done(student), measure=lambda: rows).measured("accuracy")
    with pytest.raises(ValueError, match=r"no held-out example to measure 'loss' on: set data\.heldout"):
        replace(step_done(student), measure=list).measured("loss")


def test_what_a_hook_keeps_comes_back_from_the_checkpoint_before_it_starts(student: Student, tmp_path: Path) -> None:
    hooks = _hooks()
    for step in (1, 2):
        hooks.on_step(step_done(student, step=step))
    optimizer = torch.optim.AdamW(student.model.parameters())
    folder = save_checkpoint(tmp_path, step=2, student=student, optimizer=optimizer, keep=1, also=hooks.save)
    CALLS.clear()
    again = _hooks()
    again.load(folder)
    again.on_start(started(step_done(student, step=2)))
    assert CALLS == ["first starts at 2 with 2", "whole starts at 2 with 2"]


def test_checkpoint_without_what_a_hook_kept_is_refused(student: Student, tmp_path: Path) -> None:
    folder = save_checkpoint(
        tmp_path, step=2, student=student, optimizer=torch.optim.AdamW(student.model.parameters()), keep=1
    )
    Hooks.of([PartConfig(kind=f"{__name__}:Plain")]).load(folder)
    with pytest.raises(RunDirectoryError, match=r"holds nothing of hooks\[0\]\.kind='.*:Whole'"):
        _hooks().load(folder)


def test_checkpoint_is_not_there_where_a_hook_fails_to_save(student: Student, tmp_path: Path) -> None:
    hooks = Hooks({"hooks[0].kind='x'": Failing({"save": OSError("disk full")})})
    optimizer = torch.optim.AdamW(student.model.parameters())
    with pytest.raises(TrainingStoppedError, match=r"^hooks\[0\]\.kind='x': save failed: OSError: disk full"):
        save_checkpoint(tmp_path, step=2, student=student, optimizer=optimizer, keep=1, also=hooks.save)
    assert not (tmp_path / "checkpoints" / "step-000002").exists()


class Failing:
    """Fails where it is told to."""

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        self._errors = errors

    def on_start(self, at: RunState) -> None:
        self._maybe("on_start")

    def on_step(self, done: StepDone) -> None:
        self._maybe("on_step")

    def save(self, folder: Path) -> None:
        self._maybe("save")

    def load(self, folder: Path) -> None:
        self._maybe("load")

    def _maybe(self, method: str) -> None:
        if error := self._errors.get(method):
            raise error


@pytest.mark.parametrize(
    ("method", "call", "why"),
    [
        ("on_start", lambda hooks, done: hooks.on_start(done), "on_start failed: KeyError: 'lost'"),
        ("on_step", lambda hooks, done: hooks.on_step(done), "on_step after step 4 failed: KeyError: 'lost'"),
    ],
)
def test_error_of_a_hook_names_it_and_the_later_ones_are_not_called(
    student: Student, method: str, call: Callable[[Hooks, StepDone], None], why: str
) -> None:
    later = Whole()
    hooks: dict[str, Hook] = {"hooks[0].kind='a:B'": Failing({method: KeyError("lost")}), "hooks[1].kind='w'": later}
    with pytest.raises(TrainingStoppedError) as raised:
        call(Hooks(hooks), step_done(student, step=4))
    assert str(raised.value) == f"hooks[0].kind='a:B': {why}"
    assert CALLS == []


@pytest.mark.parametrize("error", [StopRequestedError("asked"), TeacherUnavailableError("away")])
def test_what_the_run_knows_how_to_end_with_passes_as_it_is(student: Student, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        Hooks({"hooks[0]": Failing({"on_step": error})}).on_step(step_done(student))
    assert raised.value is error


def test_settings_name_hooks_and_a_mistake_is_told_with_its_key() -> None:
    with pytest.raises(InvalidPartError, match=r"hooks\[0\]\.kind='ema' is not a hook: write one of ema_teacher"):
        Hooks.of([PartConfig(kind="ema")])
    with pytest.raises(InvalidPartError, match=r"hooks\[1\]\.options\.every_steps: Field required"):
        Hooks.of(
            [
                PartConfig(kind=f"{__name__}:Plain"),
                PartConfig(kind="ema_teacher", options={"decay": 0.9, "folder": "w"}),
            ]
        )
    with pytest.raises(InvalidPartError, match="Nothing has no method on_step"):
        HOOK.find(f"{__name__}:Nothing", key="hooks[0].kind")
