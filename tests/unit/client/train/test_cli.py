from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from preceptor_client import cli
from preceptor_client.errors import PreceptorError
from preceptor_client.train.record.settings_file import to_toml
from preceptor_client.train.run.config import RunConfig

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


@pytest.fixture
def run_toml(settings: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(to_toml(settings))
    return path


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("train", "eval", "score", "doctor"))


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("preceptor 0.")


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


def test_unusable_setting_exits_2(run_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "@", str(run_toml), "--run.num-steps", "0"]) == 2
    assert "run.num_steps" in capsys.readouterr().err


def test_expected_error_is_one_line_and_exits_1(run_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "@", str(run_toml), "--student.model", "/absent/model"]) == 1
    err = capsys.readouterr().err
    assert err == "preceptor train: student.model: no folder '/absent/model'\n"


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("preceptor_client.commands.train.run", interrupted)
    assert cli.main(["train"]) == 130


def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str]) -> int:
        raise KeyError("a defect")

    monkeypatch.setattr("preceptor_client.commands.train.run", broken)
    with pytest.raises(KeyError):
        cli.main(["train"])
    assert not issubclass(KeyError, PreceptorError)


def test_eval_prints_answers_and_how_many_are_right(
    run_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": "say tan", "teacher_prompt": "tan, please", "answer": "tan"}) + "\n")
    arguments = ["eval", "@", str(run_toml), "--data.heldout", str(heldout)]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"model: {tmp_path / 'student'}" in out
    assert "of 1 right" in out
    assert "with the student's prompts" in out
    # What only measures may do so in the format that training refuses.
    assert cli.main([*arguments, "--prompts", "teacher", "--student.dtype", "bfloat16"]) == 0
    assert "with the teacher's prompts" in capsys.readouterr().out


def test_eval_names_its_own_setting_where_that_gave_the_model(
    run_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": "say tan", "answer": "tan"}) + "\n")
    arguments = ["eval", "@", str(run_toml), "--data.heldout", str(heldout), "--model", "/absent/model"]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == "preceptor eval: model: no folder '/absent/model'\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.train={tmp}/none.jsonl", "data.train: {tmp}/none.jsonl: no such file"),
        ("--data.heldout={tmp}/none.jsonl", "data.heldout: {tmp}/none.jsonl: no such file"),
        ("--run.directory={tmp}/run.toml", "run.directory: {tmp}/run.toml cannot be made a folder (File exists)"),
        ("--student.model={tmp}/run.toml", "student.model: '{tmp}/run.toml' is a file, and a model is a folder"),
    ],
)
def test_path_that_is_no_use_is_told_by_its_setting(
    option: str, message: str, run_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "@", str(run_toml), option.format(tmp=tmp_path)]) == 1
    assert capsys.readouterr().err == f"preceptor train: {message.format(tmp=tmp_path)}\n"


def test_eval_names_a_bad_example_or_goes_on_without_it(
    run_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_bytes(b'{"prompt": "say caf\xe9", "answer": "a"}\n{"prompt": "say tan", "answer": 7}\n')
    arguments = ["eval", "@", str(run_toml), "--data.heldout", str(heldout)]
    assert cli.main(arguments) == 1
    assert f"{heldout}:1: not UTF-8 at byte 20" in capsys.readouterr().err
    assert cli.main([*arguments, "--data.on-bad-example", "skip"]) == 0
    out = capsys.readouterr().out
    assert "of 1 right" in out
    assert f"warning: 1 bad example(s) left out; the first: {heldout}:1: not UTF-8" in out


def test_eval_tells_once_of_the_bad_examples_of_all_tasks(
    run_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text('{"prompt": ""}\n{"prompt": "say tan", "answer": 7}\n')
    tasks = tmp_path / "tasks.toml"
    tasks.write_text("".join(f"[tasks.{name}]\ndata.heldout = {json.dumps(str(heldout))}\n" for name in ("a", "b")))
    assert cli.main(["eval", "@", str(run_toml), "@", str(tasks), "--data.on-bad-example", "skip"]) == 0
    out = capsys.readouterr().out
    assert (out.count("a: 0 of 1 right"), out.count("b: 0 of 1 right")) == (1, 1)
    assert out.count("warning: ") == 1
    assert f"warning: 2 bad example(s) left out; the first: {heldout}:1: 'prompt' must be" in out


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_data_file_that_cannot_be_read_is_told_by_its_setting(
    run_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    absent = tmp_path / "none.jsonl"
    assert cli.main(["train", "@", str(run_toml), f"--data.{name}", str(absent)]) == 1
    assert capsys.readouterr().err == f"preceptor train: data.{name}: {absent}: no such file\n"


def test_eval_without_heldout_names_the_setting(run_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "@", str(run_toml)]) == 2
    assert "data.heldout" in capsys.readouterr().err


def test_train_help_describes_the_settings() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "preceptor_client.cli", "train", "--help"], capture_output=True, text=True, check=True
    )
    assert "--teacher.top-k" in done.stdout
    assert "Teacher tokens per position" in done.stdout
    assert RunConfig.__doc__
    assert RunConfig.__doc__ in done.stdout
