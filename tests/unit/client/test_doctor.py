"""What `preceptor doctor` makes of what it finds, and its way through a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from preceptor_client import Limits, ServerInfo, TeacherClient, TeacherIds, TeacherInfo
from preceptor_client.commands import checks, doctor, doctor_view
from preceptor_client.commands.checks import Check, Outcome, Workload
from preceptor_client.commands.doctor_settings import DoctorSettings
from preceptor_client.types import Capabilities, GroupScores
from transformers import PreTrainedTokenizerFast

from tests.unit.client.scripted_teacher import Abort, Lie, ScriptedTeacher, serving
from tests.unit.client.tiny_student import WORDS, save_student

TEACHER = TeacherInfo(
    name="tutor",
    revision="r1",
    engine="fake",
    model="tiny",
    dtype="float32",
    device="cpu",
    vocabulary_size=100,
    max_model_len=1000,
    tokenizer_id="tok",
    vocabulary_id="voc",
    special_tokens=(),
    end_token_ids=(3, 4),
    has_chat_template=True,
    capabilities=Capabilities(
        temperature=True,
        batch_invariant=True,
        candidates=False,
        other_tokenizers=False,
        entropies=True,
        weight_updates=False,
    ),
    tokenizer_json="",
)
LIMITS = Limits(
    max_top_k=64,
    max_responses=8,
    max_group_tokens=5000,
    max_message_bytes=1_000_000,
    max_queue_tokens=10_000,
    max_tokenizer_bytes=1_000_000,
)
INFO = ServerInfo(server_version="1.0.0", teachers=(TEACHER,), limits=LIMITS)
WORK = Workload(top_k=32, num_responses=4, max_prompt_tokens=200, max_response_tokens=800)


def outcomes(found: Iterable[Check]) -> dict[str, str]:
    return {check.name: check.outcome.value for check in found}


def test_equal_versions_are_ok_and_others_warn() -> None:
    assert checks.check_version(INFO, client_version="1.0.0").outcome is Outcome.OK
    other = checks.check_version(INFO, client_version="1.1.0")
    assert other.outcome is Outcome.WARN
    assert "preceptor==1.0.0" in other.change


@pytest.mark.parametrize("name", ["", "tutor"])
def test_teacher_is_found_by_name_or_alone(name: str) -> None:
    check, teacher = checks.check_teacher(INFO, name=name)
    assert (check.outcome, teacher) == (Outcome.OK, TEACHER)


@pytest.mark.parametrize("name", ["", "nobody"])
def test_teacher_that_is_not_one_of_several_fails_with_their_names(name: str) -> None:
    info = replace(INFO, teachers=(TEACHER, replace(TEACHER, name="second")))
    check, teacher = checks.check_teacher(info, name=name)
    assert (check.outcome, teacher) == (Outcome.FAIL, None)
    assert "tutor, second" in check.change


@pytest.mark.parametrize(("top_k", "outcome"), [(64, Outcome.OK), (65, Outcome.FAIL)])
def test_top_k_must_be_within_the_servers_limit(top_k: int, outcome: Outcome) -> None:
    assert checks.check_top_k(LIMITS, teacher=TEACHER, work=replace(WORK, top_k=top_k)).outcome is outcome


def test_top_k_must_be_within_the_vocabulary() -> None:
    check = checks.check_top_k(replace(LIMITS, max_top_k=500), teacher=TEACHER, work=replace(WORK, top_k=101))
    assert (check.outcome, check.change) == (Outcome.FAIL, "lower --top-k to at most 100")


def test_lengths_at_the_limits_are_ok() -> None:
    found = checks.check_lengths(LIMITS, teacher=TEACHER, work=WORK)
    assert outcomes(found) == {"responses": "ok", "context": "ok", "group": "ok", "message": "ok"}


@pytest.mark.parametrize(
    ("limits", "work", "failing"),
    [
        (LIMITS, replace(WORK, max_response_tokens=801), "context"),
        (replace(LIMITS, max_group_tokens=3399), WORK, "group"),
        (LIMITS, replace(WORK, num_responses=9, max_response_tokens=100), "responses"),
        # 4 x 800 positions x (32 x (2 + 2) + 13) bytes.
        (replace(LIMITS, max_message_bytes=451_199), WORK, "message"),
    ],
)
def test_work_beyond_a_limit_fails_that_check_alone(limits: Limits, work: Workload, failing: str) -> None:
    found = outcomes(checks.check_lengths(limits, teacher=TEACHER, work=work))
    assert [name for name, outcome in found.items() if outcome == "fail"] == [failing]


def test_lengths_that_are_not_given_are_skipped() -> None:
    found = checks.check_lengths(LIMITS, teacher=TEACHER, work=replace(WORK, max_prompt_tokens=None))
    assert outcomes(found) == {"responses": "ok", "lengths": "skipped"}


async def test_estimated_bytes_are_those_of_real_messages() -> None:
    teacher = ScriptedTeacher()
    sizes: list[int] = []
    teacher.script.append(Lie(change=lambda answer: sizes.append(answer.ByteSize())))
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(TeacherIds([1] * 2000), [[1] * 1000] * 4, top_k=32)
    work = Workload(top_k=32, num_responses=4, max_prompt_tokens=2000, max_response_tokens=1000)
    estimated = checks.estimate_message_bytes(TEACHER, work=work)
    for real, estimate in zip((teacher.requests[0].ByteSize(), sizes[0]), estimated, strict=True):
        assert 0 <= real - estimate < 1024


async def honest_scores() -> GroupScores:
    async with serving(ScriptedTeacher()) as address, TeacherClient(address) as client:
        return await client.score(TeacherIds([1]), [[10, 20]], top_k=4)


@pytest.mark.parametrize(("moved", "outcome"), [(0.0, Outcome.OK), (0.01, Outcome.OK), (0.5, Outcome.WARN)])
async def test_probe_reports_the_largest_difference(moved: float, outcome: Outcome) -> None:
    first = await honest_scores()
    response = first.responses[0]
    support_NK = response.support_logprobs_NK.copy()
    support_NK[1, 2] += moved
    second = replace(first, responses=(replace(response, support_logprobs_NK=support_NK),))
    # float32 at about -5.
    assert checks.largest_difference(first, second) == pytest.approx(moved, abs=1e-6)
    assert checks.check_probe(first, second, round_trips_ms=[1.0, 2.0]).outcome is outcome


async def test_probe_with_a_position_that_is_not_finite_fails() -> None:
    scores = await honest_scores()
    broken = replace(scores, responses=(replace(scores.responses[0], status_T=np.array([1, 3], np.uint8)),))
    check = checks.check_probe(scores, broken, round_trips_ms=[1.0, 2.0])
    assert check.outcome is Outcome.FAIL
    assert check.found.startswith("1 of 2 positions")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "no-such-host.invalid:1"])
def test_address_that_leads_nowhere_fails(address: str) -> None:
    assert doctor.check_address(address).outcome is Outcome.FAIL


def test_exit_status_is_1_only_after_a_failure() -> None:
    ok, warn = (Check(name="x", outcome=outcome, found="") for outcome in (Outcome.OK, Outcome.WARN))
    assert doctor.exit_status([ok, warn]) == 0
    assert doctor.exit_status([ok, Check(name="x", outcome=Outcome.FAIL, found="")]) == 1


async def test_good_server_passes_every_check() -> None:
    async with serving(ScriptedTeacher()) as address:
        found = (await doctor.examine(DoctorSettings(address=address))).checks
    assert outcomes(found) == {
        "address": "ok",
        "server": "ok",
        "version": "warn",
        "teacher": "ok",
        "tokenizer": "skipped",
        "top-k": "ok",
        "responses": "ok",
        "lengths": "skipped",
        "probe score": "ok",
    }


async def test_corrupt_probe_fails() -> None:
    teacher = ScriptedTeacher([Lie(change=lambda answer: answer.responses[0].ClearField("digest"))])
    async with serving(teacher) as address:
        found = (await doctor.examine(DoctorSettings(address=address))).checks
    assert found[-1].outcome is Outcome.FAIL
    assert "digest" in found[-1].found


async def test_probe_that_the_server_refuses_fails() -> None:
    async with serving(ScriptedTeacher([Abort(code=grpc.StatusCode.INTERNAL, message="boom")])) as address:
        found = (await doctor.examine(DoctorSettings(address=address))).checks
    assert found[-1].outcome is Outcome.FAIL
    assert "boom" in found[-1].found


async def test_student_folder_that_does_not_exist_fails_the_tokenizer_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with serving(ScriptedTeacher()) as address:
        found = await doctor.examine(DoctorSettings(address=address, student="/no/such/folder"))
    assert outcomes(found.checks)["tokenizer"] == "fail"
    assert (found.student is not None, found.checks[-1].name) == (True, "probe score")


async def test_a_tokenizer_that_does_not_fit_the_students_model_fails_before_the_teacher_is_asked(
    tmp_path: Path,
) -> None:
    student = save_student(tmp_path, vocab_size=len(WORDS) - 1)
    teacher = ScriptedTeacher()
    async with serving(teacher) as address:
        found = (await doctor.examine(DoctorSettings(address=address, student=str(student)))).checks
    assert outcomes(found)["vocabulary"] == "fail"
    assert "resize_token_embeddings" in next(check.found for check in found if check.name == "vocabulary")
    assert not teacher.registrations


async def test_padding_that_is_replaced_is_a_warning(tmp_path: Path) -> None:
    student = save_student(tmp_path, vocab_size=len(WORDS))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(student)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(student)
    async with serving(ScriptedTeacher()) as address:
        found = (await doctor.examine(DoctorSettings(address=address, student=str(student)))).checks
    assert outcomes(found)["vocabulary"] == "warn"
    assert "'<eos>' pads instead" in next(check.found for check in found if check.name == "vocabulary")


async def test_student_is_registered_as_its_files_and_the_settings_say(tmp_path: Path) -> None:
    student = save_student(tmp_path, vocab_size=90, eos_token_id=1)
    teacher = ScriptedTeacher()
    async with serving(teacher) as address:
        as_saved = await doctor.examine(DoctorSettings(address=address, student=str(student)))
        await doctor.examine(
            DoctorSettings(
                address=address,
                student=str(student),
                student_end_token_ids=(5, 6),
                teacher_end_token_ids=(4,),
                special_pairs={"<a>": "<b>"},
            )
        )
    first, *_, last = teacher.registrations
    assert (list(first.end_token_ids), first.vocabulary_size, first.teacher) == ([1], 90, "tutor")
    assert (list(last.end_token_ids), list(last.teacher_end_token_ids)) == ([5, 6], [4])
    assert [(pair.student, pair.teacher) for pair in last.special_pairs] == [("<a>", "<b>")]
    assert list(outcomes(as_saved.checks).items())[4:9] == [
        ("vocabulary", "ok"),
        ("tokenizer", "ok"),
        ("end tokens", "ok"),
        ("special tokens", "ok"),
        ("student probe", "ok"),
    ]


async def test_json_holds_checks_alignment_and_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = save_student(tmp_path)
    async with serving(ScriptedTeacher()) as address:
        arguments = ["--address", address, "--json"]
        assert await asyncio.to_thread(doctor.run, [*arguments, "--student", str(student)]) == 0
        with_student = json.loads(capsys.readouterr().out)
        assert await asyncio.to_thread(doctor.run, arguments) == 0
        without = json.loads(capsys.readouterr().out)
    assert {check["name"]: check["outcome"] for check in with_student["checks"]}["end tokens"] == "ok"
    assert with_student["alignment"]["relation"] == "identical"
    assert with_student["alignment"]["end_tokens_meet"] is True
    assert with_student["alignment"]["paired"][0]["teacher"] == {"id": 3, "text": "<end>"}
    assert with_student["student_probe"]["scored_share"] == 1.0
    assert with_student["student_probe"]["positions"] == {"ok": with_student["student_probe"]["positions"]["ok"]}
    assert (without["alignment"], without["student_probe"]) == (None, None)


async def test_pairs_are_shown_below_the_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    student = save_student(tmp_path)
    async with serving(ScriptedTeacher()) as address:
        assert await asyncio.to_thread(doctor.run, ["--address", address, "--student", str(student)]) == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert ["<eos> (7)", "<end> (3)", "end of response"] in rows


def test_table_shows_what_to_change() -> None:
    table = doctor_view.check_table([Check(name="top-k", outcome=Outcome.FAIL, found="[65] tokens", change="lower it")])
    cells = [str(cell) for column in table.columns for cell in column.cells]
    assert cells == ["top-k", "fail", "[65] tokens\n-> lower it"]


def test_server_that_is_absent_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--address", "127.0.0.1:1", "--timeout-seconds", "0.3"]) == 1
    assert "fail" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--address", "a:1", "--top-k", "0"]])
def test_wrong_settings_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(arguments) == 2
    assert "preceptor doctor: 1 setting(s) cannot be used" in capsys.readouterr().err


async def test_each_of_several_replicas_is_asked() -> None:
    async with serving(ScriptedTeacher()) as one, serving(ScriptedTeacher()) as other:
        found = (await doctor.examine(DoctorSettings(address=f"{one},{other}"))).checks
        assert [check.outcome for check in found if check.name.startswith("replica")] == [Outcome.OK, Outcome.OK]
        assert doctor.exit_status(found) == 0
        found = (await doctor.examine(DoctorSettings(address=f"{one},127.0.0.1:1", timeout_seconds=0.5))).checks
    assert [check.name for check in found if check.outcome is Outcome.FAIL] == ["replica 127.0.0.1:1"]


async def test_replicas_of_different_teachers_fail() -> None:
    other_teacher = ScriptedTeacher(info_changes={"revision": "r2"})
    async with serving(ScriptedTeacher()) as one, serving(other_teacher) as other:
        found = (await doctor.examine(DoctorSettings(address=f"{one},{other}"))).checks
    failed = [check for check in found if check.outcome is Outcome.FAIL]
    assert [check.name for check in failed] == ["server"]
    assert "teachers[tutor].revision" in failed[0].found
