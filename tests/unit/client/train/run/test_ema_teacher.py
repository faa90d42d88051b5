from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.run.ema_teacher import EmaTeacher
from preceptor_client.train.run.hooks import Hooks
from preceptor_client.train.student.student import Student
from preceptor_client.types import WeightUpdate
from transformers import AutoModelForCausalLM

from tests.unit.client.train.run.test_hooks import started, step_done
from tests.unit.client.train.tiny import tiny_student

DECAY = 0.75
Weights = dict[str, torch.Tensor]


@dataclass
class Client:
    """A teacher that notes what it was to take, and what lay in the folder then."""

    folder: Path
    taken: list[tuple[str, str, float]] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)

    def update_weights(self, path: str, *, teacher: str, timeout_seconds: float) -> WeightUpdate:
        self.taken.append((path, teacher, timeout_seconds))
        model = AutoModelForCausalLM.from_pretrained(self.folder / path, dtype=torch.float32)
        self.weights.append({name: one.detach().clone() for name, one in model.named_parameters()})
        return WeightUpdate(revision=str(len(self.taken)), previous_revision="0", paused_ms=1.0)


def _weights(student: Student) -> Weights:
    return {name: one.detach().clone() for name, one in student.model.named_parameters()}


def _move(student: Student, *, step: int) -> None:
    """What an optimizer would do; the same at every time."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def _hook(folder: Path, *, every_steps: int = 2) -> EmaTeacher:
    return EmaTeacher(decay=DECAY, every_steps=every_steps, folder=str(folder))


def _run(hook: EmaTeacher, student: Student, client: Client, *, steps: range) -> None:
    for step in steps:
        _move(student, step=step)
        hook.on_step(step_done(student, step=step, teachers={"": client}))


@pytest.mark.parametrize("tied", [True, False])
def test_teacher_takes_the_average_of_the_students_weights_every_so_many_steps(tmp_path: Path, tied: bool) -> None:
    student, client, hook = tiny_student(tied=tied), Client(tmp_path), _hook(tmp_path)
    averages = {name: one.double() for name, one in _weights(student).items()}
    hook.on_start(started(step_done(student, step=0, teachers={"": client})))
    at_step: dict[int, dict[str, torch.Tensor]] = {}
    for step in range(1, 5):
        _run(hook, student, client, steps=range(step, step + 1))
        averages = {
            name: DECAY * averages[name] + (1 - DECAY) * one.double() for name, one in _weights(student).items()
        }
        at_step[step] = averages
    assert client.taken == [("ema-step-000002", "", 600.0), ("ema-step-000004", "", 600.0)]
    for given, step in zip(client.weights, (2, 4), strict=True):
        assert given.keys() == at_step[step].keys()
        for name, weight in given.items():
            # float32 against float64, over a few steps.
            torch.testing.assert_close(weight.double(), at_step[step][name], rtol=1e-6, atol=1e-6)
    # Whoever saved the average has put the student's own storage back.
    moved = tiny_student(tied=tied)
    for step in range(1, 5):
        _move(moved, step=step)
    for name, weight in _weights(student).items():
        assert torch.equal(weight, _weights(moved)[name])


def test_student_keeps_its_storage_while_the_average_is_written(tmp_path: Path, student: Student) -> None:
    places = [parameter.data_ptr() for parameter in student.model.parameters()]
    hook, client = _hook(tmp_path, every_steps=1), Client(tmp_path)
    hook.on_start(started(step_done(student, step=0, teachers={"": client})))
    _run(hook, student, client, steps=range(1, 3))
    assert [parameter.data_ptr() for parameter in student.model.parameters()] == places


@pytest.mark.parametrize("saved_at", [2, 3])
def test_resumed_run_gives_the_teacher_the_same_weights_as_one_that_was_not(tmp_path: Path, saved_at: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "kept").mkdir()
    whole, client = tiny_student(), Client(tmp_path / "whole")
    hook = _hook(tmp_path / "whole")
    hook.on_start(started(step_done(whole, step=0, teachers={"": client})))
    _run(hook, whole, client, steps=range(1, 7))

    killed, cut = tiny_student(), Client(tmp_path / "cut")
    hook = _hook(tmp_path / "cut")
    hook.on_start(started(step_done(killed, step=0, teachers={"": cut})))
    _run(hook, killed, cut, steps=range(1, saved_at + 1))
    hook.save(tmp_path / "kept")
    weights = _weights(killed)
    # The run goes on and is killed after it has given the teacher later weights twice.
    _run(hook, killed, cut, steps=range(saved_at + 1, 7))

    resumed, again = tiny_student(), Client(tmp_path / "cut")
    for name, parameter in resumed.model.named_parameters():
        parameter.data = weights[name]
    hook = _hook(tmp_path / "cut")
    hook.load(tmp_path / "kept")
    hook.on_start(started(step_done(resumed, step=saved_at, teachers={"": again})))
    _run(hook, resumed, again, steps=range(saved_at + 1, 7))
    # First what served at the checkpoint, then as without the kill.
    assert [path for path, _, _ in again.taken] == [path for path, _, _ in client.taken]
    for given, expected in zip(again.weights, client.weights, strict=True):
        for name, weight in given.items():
            assert torch.equal(weight, expected[name]), name


def test_folders_that_no_checkpoint_needs_are_removed_and_others_left(tmp_path: Path, student: Student) -> None:
    (tmp_path / "ema-step-final").mkdir()
    (tmp_path / "other").mkdir()
    hook, client = _hook(tmp_path, every_steps=1), Client(tmp_path)
    hook.on_start(started(step_done(student, step=0, teachers={"": client})))
    for step in range(1, 7):
        _run(hook, student, client, steps=range(step, step + 1))
        if step in (1, 2, 4):
            kept = tmp_path.parent / f"{tmp_path.name}-kept-{step}"
            kept.mkdir()
            hook.save(kept)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "ema-step-000002", "ema-step-000004", "ema-step-000006", "ema-step-final", "other"
    ]  # fmt: skip


def test_weights_that_are_gone_are_written_again_and_told(
    tmp_path: Path, student: Student, caplog: pytest.LogCaptureFixture
) -> None:
    hook, client = _hook(tmp_path, every_steps=1), Client(tmp_path)
    hook.on_start(started(step_done(student, step=0, teachers={"": client})))
    _run(hook, student, client, steps=range(1, 2))
    kept = tmp_path / "kept"
    kept.mkdir()
    hook.save(kept)
    (tmp_path / "ema-step-000001").rename(tmp_path / "elsewhere")
    again = _hook(tmp_path, every_steps=1)
    again.load(kept)
    again.on_start(started(step_done(student, step=1, teachers={"": client})))
    assert "the teacher's weights are gone" in caplog.text
    assert client.taken[-1][0] == "ema-step-000001"
    assert all(torch.equal(one, client.weights[0][name]) for name, one in client.weights[-1].items())


def test_what_is_not_there_is_told_before_the_first_step(tmp_path: Path, student: Student) -> None:
    client = Client(tmp_path)

    def start(*, folder: Path = tmp_path, teacher: str = "", **teachers: object) -> None:
        options = {"decay": 0.5, "every_steps": 1, "folder": str(folder), "teacher": teacher}
        hooks = Hooks.of([PartConfig(kind="ema_teacher", options=options)])
        hooks.on_start(started(step_done(student, step=0, teachers=teachers)))

    start(one=client)
    start(one=client, two=object(), teacher="one")
    for expected, arguments in (
        ("teacher is empty, and the run has 2 teachers: name one of 'one', 'two'", {"one": client, "two": client}),
        ("teacher='three' is none of the run's teachers: 'one'", {"one": client, "teacher": "three"}),
        ("takes no new weights", {"one": object()}),
        ("is not there: give the server's engine.weights_folder", {"one": client, "folder": tmp_path / "no"}),
    ):
        with pytest.raises(TrainingStoppedError, match=r"^hooks\[0\]\.kind='ema_teacher': on_start failed") as raised:
            start(**arguments)
        assert expected in str(raised.value)


def test_average_of_another_model_is_refused(tmp_path: Path, student: Student) -> None:
    hook, client = _hook(tmp_path), Client(tmp_path)
    hook.on_start(started(step_done(student, step=0, teachers={"": client})))
    kept = tmp_path / "kept"
    kept.mkdir()
    hook.save(kept)
    again = _hook(tmp_path)
    again.load(kept)
    with pytest.raises(ValueError, match="average is of a model with other weights"):
        again.on_start(started(step_done(tiny_student(tied=False), step=2, teachers={"": client})))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_name_of_the_weights_is_the_name_of_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be the name of a folder"):
        EmaTeacher(decay=0.5, every_steps=1, folder=str(tmp_path), name=name)
