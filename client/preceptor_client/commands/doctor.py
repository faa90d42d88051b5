"""`preceptor doctor`: finds out, before a run does, whether this machine, student and workload suit a teacher.

Asks the server and loads the student's tokenizer; `checks` judges what was found.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable

import preceptor
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor.wire import LogprobDtype
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from preceptor_client.channel import split_address
from preceptor_client.commands import checks
from preceptor_client.commands.checks import Check, Outcome, StudentTokenizer, Workload
from preceptor_client.commands.output import FAILED, INVALID_SETTINGS, complain
from preceptor_client.errors import PreceptorError
from preceptor_client.teacher import TeacherClient
from preceptor_client.types import GroupScores, TeacherIds, TeacherInfo

PROGRAM = "preceptor doctor"
PROBE_LENGTH = 8
"""Tokens of the probe's prompt, and of its response."""
_COLOURS = {Outcome.OK: "green", Outcome.WARN: "yellow", Outcome.FAIL: "red", Outcome.SKIPPED: "dim"}


class DoctorSettings(BaseSettings):
    """Checks a teacher server, and whether a student and a workload suit it."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRECEPTOR_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
    )

    address: str = Field(min_length=3)
    """The teacher server, as HOST:PORT."""
    teacher: str = ""
    """Name of the teacher; may be left out where the server hosts one."""
    student: str = ""
    """Folder or hub id of the student, to compare tokenizers and end tokens. HF_HUB_OFFLINE=1 is respected."""
    student_gguf_file: str = ""
    """Name of the GGUF file inside --student, where its tokenizer comes from one."""
    top_k: int = Field(32, ge=1, le=1024)
    """Size of the support that training will ask for."""
    num_responses: int = Field(8, ge=1, le=4096)
    """Responses per prompt that training will send."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt of the training data."""
    max_response_tokens: int | None = Field(None, ge=1)
    """Longest response that the student may write."""
    timeout_seconds: float = Field(15.0, gt=0, le=3600)
    """How long to wait for each answer, retries included."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status: 0 unless a check failed."""
    try:
        settings = load_settings(DoctorSettings, arguments, program=PROGRAM)
    except InvalidSettingsError as error:
        complain(str(error))
        return INVALID_SETTINGS
    found = asyncio.run(examine(settings))
    Console().print(check_table(found))
    return exit_status(found)


def exit_status(found: Iterable[Check]) -> int:
    """0 unless a check failed."""
    return FAILED if any(check.outcome is Outcome.FAIL for check in found) else 0


def check_table(found: Iterable[Check]) -> Table:
    """One row per check, and what to change below each that is not ok."""
    table = Table("check", "outcome", "found and what to change")
    for check in found:
        # Cells rather than markup: "[" in a model's name shall show.
        detail = Cell(check.found)
        if check.change:
            detail.append(f"\n-> {check.change}", style="bold")
        table.add_row(check.name, Cell(check.outcome, style=_COLOURS[check.outcome]), detail)
    return table


async def examine(settings: DoctorSettings) -> list[Check]:
    """All checks in order; ends early where the rest could not be answered."""
    resolved = check_address(settings.address)
    if resolved.outcome is Outcome.FAIL:
        return [resolved]
    async with TeacherClient(settings.address, timeout_seconds=settings.timeout_seconds) as client:
        started = time.perf_counter()
        try:
            info = await client.info()
        except PreceptorError as error:
            change = "start the server, or correct --address; look for a firewall between here and there"
            return [resolved, Check(name="server", outcome=Outcome.FAIL, found=str(error), change=change)]
        answered = Check(name="server", outcome=Outcome.OK, found=f"answered in {_ms_since(started):.1f} ms")
        version = checks.check_version(info, client_version=preceptor.__version__)
        hosted, teacher = checks.check_teacher(info, name=settings.teacher)
        found = [resolved, answered, version, hosted]
        if teacher is None:
            return found
        work = Workload(
            top_k=settings.top_k,
            num_responses=settings.num_responses,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_response_tokens=settings.max_response_tokens,
        )
        found += check_student(settings, teacher=teacher)
        found.append(checks.check_top_k(info.limits, teacher=teacher, work=work))
        found += checks.check_lengths(info.limits, teacher=teacher, work=work)
        probe_k = min(settings.top_k, info.limits.max_top_k, teacher.vocabulary_size)
        found.append(await probe(client, teacher=teacher, top_k=probe_k))
    return found


def check_address(address: str) -> Check:
    """The address is one, and its host has a number."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        return Check(name="address", outcome=Outcome.FAIL, found=str(error), change="write --address HOST:PORT")
    try:
        resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        change = "correct the host's name, or use its IP address"
        return Check(name="address", outcome=Outcome.FAIL, found=f"{host}: {error}", change=change)
    numbers = sorted({str(sockaddr[0]) for *_, sockaddr in resolved})
    return Check(name="address", outcome=Outcome.OK, found=f"{host} is {', '.join(numbers)}")


def check_student(settings: DoctorSettings, *, teacher: TeacherInfo) -> list[Check]:
    """Tokenizer and end tokens of the student against the teacher's."""
    if not settings.student:
        return [Check(name="tokenizer", outcome=Outcome.SKIPPED, found="needs --student")]
    try:
        student = load_student(settings.student, gguf_file=settings.student_gguf_file)
    except ImportError as error:
        change = "run `pip install 'preceptor[train]'`"
        return [Check(name="tokenizer", outcome=Outcome.FAIL, found=str(error), change=change)]
    except (OSError, ValueError) as error:
        change = "correct --student, or unset HF_HUB_OFFLINE where it shall be downloaded"
        return [Check(name="tokenizer", outcome=Outcome.FAIL, found=str(error), change=change)]
    return [checks.check_tokenizer(teacher, student=student), checks.check_end_tokens(teacher, student=student)]


def load_student(student: str, *, gguf_file: str = "") -> StudentTokenizer:
    """The student's tokenizer, from a folder or the hub."""
    from transformers import AutoTokenizer  # heavy, and only the extra `train` has it

    options = {"gguf_file": gguf_file} if gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(student, **options)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"the tokenizer of {student} has no tokenizer.json: only fast tokenizers can be compared")
    end = tokenizer.eos_token_id
    return StudentTokenizer(
        tokenizer_json=backend.to_str(),
        chat_template=tokenizer.chat_template,
        end_token_ids=() if end is None else (end,),
    )


async def probe(client: TeacherClient, *, teacher: TeacherInfo, top_k: int) -> Check:
    """Scores a short sequence twice."""
    ids = [token % teacher.vocabulary_size for token in range(2 * PROBE_LENGTH)]
    scores: list[GroupScores] = []
    round_trips_ms: list[float] = []
    for _ in range(2):
        started = time.perf_counter()
        try:
            scores.append(
                await client.score(
                    TeacherIds(ids[:PROBE_LENGTH]),
                    [ids[PROBE_LENGTH:]],
                    top_k=top_k,
                    teacher=teacher.name,
                    logprob_dtype=LogprobDtype.F32,
                )
            )
        except PreceptorError as error:
            change = "do not train against this server until a probe succeeds; its log says more"
            return Check(name="probe score", outcome=Outcome.FAIL, found=str(error), change=change)
        round_trips_ms.append(_ms_since(started))
    return checks.check_probe(*scores, round_trips_ms=round_trips_ms)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
