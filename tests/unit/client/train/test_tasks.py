from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from preceptor.settings import InvalidSettingsError, dump_settings, load_settings
from preceptor_client.train.record.settings_file import to_toml
from preceptor_client.train.run.config import RunConfig

BASE = """
[student]
model = "s"
[rollout]
prompts_per_step = 4
max_new_tokens = 8
[optimizer]
learning_rate = 1e-5
[run]
directory = "runs/x"
num_steps = 3
"""
TWO = """
[teacher]
top_k = 16
reproducible = true
[teachers.law]
address = "law:1"
[teachers.code]
address = "code:1"
top_k = 8
[data]
on_bad_example = "skip"
[tasks.statutes]
teachers = ["law"]
weight = 2
[tasks.statutes.data]
train = "statutes.jsonl"
[tasks.statutes.rollout]
max_new_tokens = 64
[tasks.programs]
teachers = {code = 3, law = 1}
combine = "divergences"
[tasks.programs.data]
train = "programs.jsonl"
[tasks.programs.objective]
kind = "tail_bucket"
[tasks.programs.teacher]
top_k = 4
"""


def load(tmp_path: Path, toml: str) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(BASE + toml)
    return load_settings(RunConfig, ["@", str(path)], program="preceptor train")


def test_a_task_has_its_own_settings_and_for_the_rest_the_runs(tmp_path: Path) -> None:
    statutes, programs = load(tmp_path, TWO).all_tasks()
    assert (statutes.name, statutes.weight, statutes.data.train, statutes.data.on_bad_example) == (
        "statutes",
        2,
        "statutes.jsonl",
        "skip",
    )
    assert (statutes.rollout.max_new_tokens, programs.rollout.max_new_tokens) == (64, 8)
    assert (statutes.rollout.prompts_per_step, programs.rollout.prompts_per_step) == (4, 4)
    assert (statutes.objective.kind, programs.objective.kind) == ("lsm", "tail_bucket")
    assert list(statutes.teachers) == ["law"]
    assert statutes.teachers["law"].address == "law:1"
    assert statutes.teachers["law"].top_k == 16
    assert statutes.teachers["law"].reproducible


def test_teachers_of_a_task_weigh_what_it_says_and_share_its_settings(tmp_path: Path) -> None:
    _, programs = load(tmp_path, TWO).all_tasks()
    assert programs.teacher_shares == {"code": 0.75, "law": 0.25}
    assert programs.combine == "divergences"
    assert {teacher.top_k for teacher in programs.teachers.values()} == {4}
    assert programs.teacher.address == "code:1"


OWN_PARTS = """
[teacher]
address = "t:1"
[objective]
kind = "jsd"
options = {beta = 0.25}
support = "teacher_top_p"
support_options = {top_p = 0.9}
[credit]
kind = "grpo"
options = {epsilon = 0.1}
coefficient = 3
[tasks.a.data]
train = "a.jsonl"
"""


@pytest.mark.parametrize(
    ("changes", "options", "support_options", "credit_options"),
    [
        ("[tasks.a.objective]\nkind = 'jsd'", {"beta": 0.25}, {"top_p": 0.9}, {"epsilon": 0.1}),
        ("[tasks.a.objective]\nkind = 'forward'", {}, {"top_p": 0.9}, {"epsilon": 0.1}),
        ("[tasks.a.objective]\nsupport = 'union'", {"beta": 0.25}, {}, {"epsilon": 0.1}),
        ("[tasks.a.objective]\noptions = {beta = 0.5}", {"beta": 0.5}, {"top_p": 0.9}, {"epsilon": 0.1}),
        ("[tasks.a.credit]\nkind = 'grpo'", {"beta": 0.25}, {"top_p": 0.9}, {"epsilon": 0.1}),
        ("[tasks.a.credit]\nkind = 'teacher_gap'", {"beta": 0.25}, {"top_p": 0.9}, {}),
    ],
)
def test_options_of_a_part_are_not_taken_over_by_a_part_of_another_kind(
    tmp_path: Path,
    changes: str,
    options: dict[str, object],
    support_options: dict[str, object],
    credit_options: dict[str, object],
) -> None:
    (task,) = load(tmp_path, OWN_PARTS + changes).all_tasks()
    assert task.credit is not None
    assert (task.objective.options, task.objective.support_options) == (options, support_options)
    assert (task.credit.options, task.credit.coefficient) == (credit_options, 3)


def test_a_run_without_tasks_is_one_task_without_a_name(tmp_path: Path) -> None:
    (task,) = load(tmp_path, '[teacher]\naddress = "t:1"\n[data]\ntrain = "a.jsonl"\n').all_tasks()
    assert (task.name, list(task.teachers), task.teacher_shares) == ("", ["teacher"], {"teacher": 1.0})
    assert (task.source("train"), task.key("rollout.top_p")) == ("train", "rollout.top_p")


def test_saved_settings_of_several_tasks_load_as_the_same(tmp_path: Path) -> None:
    config = load(tmp_path, TWO)
    saved = to_toml(dump_settings(config))
    (tmp_path / "saved.toml").write_text(saved)
    again = load_settings(RunConfig, ["@", str(tmp_path / "saved.toml")], program="test")
    assert dump_settings(again) == dump_settings(config)
    assert again.all_tasks() == config.all_tasks()
    assert tomllib.loads(saved)["tasks"]["programs"]["teachers"] == {"code": 3, "law": 1}


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('[data]\ntrain = "a.jsonl"\n', r"teacher\.address: is not set"),
        ('[teacher]\naddress = "t:1"\n', r"data\.train: is not set"),
        (
            '[teachers.a]\naddress = "t:1"\n[teachers.b]\naddress = "t:2"\n[data]\ntrain = "a.jsonl"\n',
            r"several \[teachers\.NAME\] and no \[tasks\.NAME\] that says which to ask: name one of a, b",
        ),
        (TWO.replace('teachers = ["law"]', ""), r"tasks\.statutes\.teachers is not set: name one of law, code"),
        (TWO.replace('["law"]', '["lore"]'), r"tasks\.statutes\.teachers: there is no \[teachers\.lore\]"),
        (TWO.replace("law = 1", "law = 0"), r"tasks\.programs\.teachers: a weight must be above 0"),
        (TWO.replace('address = "law:1"', ""), r"teachers\.law\.address: is not set"),
        (TWO.replace('address = "law:1"', 'adress = "law:1"'), r"teachers\.law\.adress"),
        (TWO.replace("max_new_tokens = 64", "max_new_tokens = 0"), r"tasks\.statutes\.rollout\.max_new_tokens"),
        (TWO.replace("max_new_tokens = 64", "prompts_per_step = 2"), r"tasks\.statutes\.rollout\.prompts_per_step: is"),
        (TWO.replace("weight = 2", "wieght = 2"), r"tasks\.statutes\.wieght"),
        (TWO.replace("[tasks.statutes]", '[tasks."stat utes"]'), r"'stat utes' is no name"),
        (
            TWO.replace("top_k = 8", "temperature = 2.0"),
            r"tasks\.programs\.teachers: their temperatures differ \(1\.0, 2\.0\)",
        ),
        (
            TWO.replace("weight = 2", 'teacher_weights = {kind = "a:B"}'),
            r"tasks\.statutes\.teacher_weights: there is one teacher",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_key(tmp_path: Path, toml: str, message: str) -> None:
    with pytest.raises(InvalidSettingsError, match=message):
        load(tmp_path, toml)
