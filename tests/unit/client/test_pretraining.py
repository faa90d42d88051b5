"""`preceptor doctor --prompts`: one batch of a student's answers, measured before training."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from preceptor_client.commands import doctor
from preceptor_client.commands.checks import Outcome
from preceptor_client.commands.doctor_settings import DoctorSettings
from preceptor_client.commands.pretraining import check_verdicts, examine_batch, run_config
from preceptor_client.commands.pretraining_batch import judge, roll_out
from preceptor_client.commands.pretraining_view import MEASURES_OF
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.instruments.bounds import Level
from preceptor_client.train.instruments.measures import measure
from preceptor_client.train.instruments.table import position_table

from tests.tiny import tiny_llama
from tests.unit.client.scripted_teacher import ScriptedTeacher, V, serving
from tests.unit.client.tiny_student import save_student
from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.tiny import tiny_student


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:  # Any: settings of the doctor
    """A saved student whose vocabulary is the scripted teacher's, and five prompts of three tasks."""
    student = save_student(tmp_path / "student")
    tiny_llama(spread=0.3, vocabulary_size=V).save_pretrained(student)
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {word}", "task": word[:1]} for word in ("red", "green", "blue", "grey", "rose")]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "address": "127.0.0.1:1",
        "student": str(student),
        "prompts": str(prompts),
        "max_new_tokens": 8,
        "top_k": 8,
    }


def test_a_run_would_be_asked_for_as_the_options_say(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DoctorSettings(
        address="host:1",
        teacher="tutor",
        student="folder",
        student_gguf_file="a.gguf",
        student_end_token_ids=(5,),
        teacher_end_token_ids=(6,),
        special_pairs={"<a>": "<b>"},
        top_k=9,
        prompts="p.jsonl",
        extra_fields="ignore",
        num_prompts=3,
        max_new_tokens=7,
        temperature=0.5,
        top_p=0.8,
        timeout_seconds=4,
    )
    # The doctor's own variables, which name other settings than a run's.
    monkeypatch.setenv("PRECEPTOR_TEACHER", "somebody")
    monkeypatch.setenv("PRECEPTOR_ROLLOUT__TOP_P", "0.1")
    config = run_config(settings)
    assert (config.student.model, config.student.gguf_file, config.student.end_token_ids) == ("folder", "a.gguf", (5,))
    teacher = config.teacher
    assert (teacher.address, teacher.name, teacher.top_k, teacher.patience_seconds) == ("host:1", "tutor", 9, 4)
    assert (teacher.end_token_ids, teacher.special_pairs, teacher.temperature) == ((6,), {"<a>": "<b>"}, 1.0)
    rollout = config.rollout
    assert (rollout.prompts_per_step, rollout.max_new_tokens, rollout.temperature, rollout.top_p) == (3, 7, 0.5, 0.8)
    assert (rollout.responses_per_prompt, config.data.train, config.objective.kind) == (1, "p.jsonl", "lsm")
    assert config.data.extra_fields == "ignore"


def test_a_student_that_is_its_own_teacher_has_no_gap(arguments: dict[str, Any]) -> None:
    """Both sides go through their own code: recorder and dense head here, a dense fp32 log-softmax at the teacher."""
    config = run_config(DoctorSettings(**arguments))
    student = tiny_student(seed=0)
    scored, agreement = roll_out(
        student, FakeScorer(teacher=tiny_student(seed=0)), config=config, examples=load_examples(config.data.train)
    )
    found = judge(student, scored, config=config, agreement=agreement)
    measures = found.measures
    assert (measures["num_positions"], found.scored_share) == (sum(len(one.episode.response_ids) for one in scored), 1)
    # float32 logits through two paths.
    assert (measures["gap_q01"], measures["gap_q99"]) == pytest.approx((0.0, 0.0), abs=1e-4)
    assert measures["student_mass"] == pytest.approx(measures["teacher_mass"], abs=1e-4)
    assert measures["student_entropy"] == pytest.approx(measures["teacher_entropy"], abs=1e-4)
    assert measures["overlap"] == pytest.approx(1.0)
    assert {row["group"] for row in found.by_task} == {"b", "g", "r"}
    assert sum(int(str(row["num_positions"])) for row in found.by_task) == measures["num_positions"]


def test_every_measure_is_shown_with_one_failure() -> None:
    shown = [name for names in MEASURES_OF.values() for name in names]
    assert len(shown) == len(set(shown))
    measures = measure(position_table([], [], end_token_ids=[2]))
    # The other two are of the batch and of the loss, which nothing computes before training.
    assert {*shown, "num_positions", "loss"} == set(measures)


async def test_doctor_measures_one_batch_through_a_server(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address:
        options = arguments | {"address": address, "num_prompts": 3}
        words = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        # What is found is a warning: one can train all the same.
        assert await asyncio.to_thread(doctor.run, [*words, "--json"]) == 0
        plain = json.loads(capsys.readouterr().out)
        assert await asyncio.to_thread(doctor.run, words) == 0
        shown = capsys.readouterr().out
    sent = [request for request in teacher.requests if request.request_id.startswith("doctor/")]
    assert [len(request.responses) for request in sent] == [1] * 6
    assert {request.top_k for request in sent} == {8}
    found = plain["pretraining"]
    assert found["num_responses"] == 3
    assert found["measures"]["num_positions"] == found["num_by_status"]["ok"] > 0
    assert found["by_position"][0]["num_positions"] == found["measures"]["num_positions"]
    # Random logits on both sides: the student's tokens are seldom in the teacher's top 8 of 97.
    assert found["measures"]["outside_share"] > 0.5
    assert {"failure": "1 imbalanced signal", "level": "fail"}.items() <= found["verdicts"][0].items()
    check = plain["checks"][-1]
    assert (check["name"], check["outcome"]) == ("failure modes", "warn")
    assert all(title in shown for title in ("measured before training", "by position", "by task", "what to expect"))


async def test_doctor_without_prompts_measures_nothing(arguments: dict[str, Any]) -> None:
    del arguments["prompts"]
    async with serving(ScriptedTeacher()) as address:
        found = await doctor.examine(DoctorSettings(**arguments | {"address": address}))
    assert found.pretraining is None
    assert "failure modes" not in [check.name for check in found.checks]


async def test_batch_waits_for_the_other_checks_to_pass(arguments: dict[str, Any]) -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address:
        found = await doctor.examine(DoctorSettings(**arguments | {"address": address, "top_k": 90}))
    assert (found.checks[-1].name, found.checks[-1].outcome) == ("failure modes", Outcome.SKIPPED)
    assert "top-k" in found.checks[-1].found
    assert not any(request.request_id.startswith("doctor/") for request in teacher.requests)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": "/no/such/prompts.jsonl"}, "prompts.jsonl: no such file"),
        ({"student": "/no/such/student"}, "student.model"),
    ],
)
def test_batch_that_cannot_be_made_fails_its_check(
    arguments: dict[str, Any], change: dict[str, str], says: str
) -> None:
    check, found = examine_batch(DoctorSettings(**arguments | change))
    assert (check.outcome, found) == (Outcome.FAIL, None)
    assert says in check.found


async def test_every_prompt_of_the_file_is_checked_not_those_of_the_batch_alone(arguments: dict[str, Any]) -> None:
    prompts = Path(arguments["prompts"])
    num_lines = len(prompts.read_text().splitlines())
    for line in (json.dumps({"prompt": "\ud83d"}), json.dumps({"prompt": "a " * 300})):
        whole = prompts.read_text()
        prompts.write_text(f"{whole}{line}\n")
        async with serving(ScriptedTeacher()) as address:
            settings = DoctorSettings(**arguments | {"address": address, "num_prompts": 1})
            check, found = await asyncio.to_thread(examine_batch, settings)
        assert (check.outcome, found) == (Outcome.FAIL, None)
        assert f"{prompts}:{num_lines + 1}: " in check.found
        prompts.write_text(whole)


async def test_prompt_that_does_not_fit_the_teacher_fails_the_check(arguments: dict[str, Any]) -> None:
    """The scripted teacher reads 64 tokens, and a prompt has two."""
    async with serving(ScriptedTeacher()) as address:
        settings = DoctorSettings(**arguments | {"address": address, "max_new_tokens": 63})
        check, found = await asyncio.to_thread(examine_batch, settings)
    assert (check.outcome, found) == (Outcome.FAIL, None)
    assert "rollout.max_new_tokens=63" in check.found


def test_without_torch_the_check_names_what_to_install(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "preceptor_client.commands.pretraining_batch", None)
    check, _ = examine_batch(DoctorSettings(**arguments))
    assert (check.outcome, check.change) == (Outcome.FAIL, "run `pip install 'preceptor[train]'`")


def test_prompts_without_a_student_are_a_wrong_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--address", "a:1", "--prompts", "p.jsonl"]) == 2
    assert "set --student" in capsys.readouterr().err


def test_a_verdict_is_never_a_failed_check(arguments: dict[str, Any]) -> None:
    """A stranger of a teacher: failures of distillation, and exit status 0."""
    config = run_config(DoctorSettings(**arguments))
    student = tiny_student(seed=0)
    scored, agreement = roll_out(
        student, FakeScorer(teacher=tiny_student(seed=1)), config=config, examples=load_examples(config.data.train)
    )
    found = judge(student, scored, config=config, agreement=agreement)
    assert any(verdict.level is Level.FAIL for verdict in found.verdicts)
    gap = found.measures["gap"]
    assert gap is not None
    assert -math.inf < gap < 0
    assert check_verdicts(found).outcome is Outcome.WARN
