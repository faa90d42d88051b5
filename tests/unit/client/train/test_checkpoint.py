from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.learner.checkpoint import load_optimizer, save_checkpoint
from preceptor_client.train.learner.checkpoint_folders import checkpoint_step, latest_checkpoint
from preceptor_client.train.student.student import Student
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def optimizer(student: Student) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=1e-3)
    for parameter in student.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def _save(directory: Path, step: int, student: Student, optimizer: torch.optim.Optimizer, *, keep: int = 1) -> Path:
    return save_checkpoint(directory, step=step, student=student, optimizer=optimizer, keep=keep)


def test_checkpoint_is_a_model_that_transformers_loads(
    tmp_path: Path, student: Student, optimizer: torch.optim.Optimizer
) -> None:
    folder = _save(tmp_path, 12, student, optimizer)
    assert folder == tmp_path / "checkpoints" / "step-000012"
    assert checkpoint_step(folder) == 12
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.get_parameter("lm_head.weight"), student.model.get_output_embeddings().weight)
    assert AutoTokenizer.from_pretrained(folder).decode([104, 105]) == student.tokenizer.decode([104, 105])


def test_optimizer_state_comes_back_equal(tmp_path: Path, student: Student, optimizer: torch.optim.Optimizer) -> None:
    folder = _save(tmp_path, 1, student, optimizer)
    fresh = torch.optim.AdamW(student.model.parameters(), lr=9.0)
    load_optimizer(folder, optimizer=fresh)
    for parameter in student.model.parameters():
        for name, value in optimizer.state[parameter].items():
            assert torch.equal(fresh.state[parameter][name], value)


def test_newest_are_kept_and_the_rest_removed(
    tmp_path: Path, student: Student, optimizer: torch.optim.Optimizer
) -> None:
    for step in (3, 20, 1_000_000):
        _save(tmp_path, step, student, optimizer, keep=2)
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-000020", "step-1000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-1000000"


def test_no_checkpoint_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("moment", ["save_pretrained", "fsync", "rename"])
def test_a_kill_while_saving_leaves_the_old_one(
    tmp_path: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    old = _save(tmp_path, 1, student, optimizer)

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(student.tokenizer) if moment == "save_pretrained" else os, moment, die)
        with pytest.raises(KeyboardInterrupt):
            _save(tmp_path, 2, student, optimizer)
    assert latest_checkpoint(tmp_path) == old
    new = _save(tmp_path, 2, student, optimizer)
    assert latest_checkpoint(tmp_path) == new
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]


def test_damaged_state_is_reported(tmp_path: Path, student: Student, optimizer: torch.optim.Optimizer) -> None:
    folder = _save(tmp_path, 1, student, optimizer)
    (folder / "state.json").write_text(json.dumps(["step"]))
    with pytest.raises(RunDirectoryError, match="is not a checkpoint"):
        checkpoint_step(folder)
