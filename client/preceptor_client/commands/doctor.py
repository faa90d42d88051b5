"""`preceptor doctor`: finds out, before a run does, whether this machine, student and workload suit a teacher.

Asks the server; `checks` judges what it says of itself, `student_exam` and `alignment_view` the student's tokenizer,
`pretraining` a batch of what the student writes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import preceptor
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor.wire import LogprobDtype
from rich.console import Console

from preceptor_client.access import find_access
from preceptor_client.channel import checked_addresses, split_address
from preceptor_client.commands import checks
from preceptor_client.commands.checks import Check, Outcome, Workload
from preceptor_client.commands.doctor_settings import DoctorSettings
from preceptor_client.commands.doctor_view import Examination, as_plain, show
from preceptor_client.commands.output import FAILED, INVALID_SETTINGS, complain
from preceptor_client.commands.pretraining import BATCH_CHECK, Pretraining, examine_batch
from preceptor_client.commands.student_exam import StudentExam, check_vocabulary, examine_student
from preceptor_client.commands.student_tokenizer import load_student
from preceptor_client.errors import PreceptorError
from preceptor_client.teacher import TeacherClient
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.types import GroupScores, TeacherIds, TeacherInfo

PROGRAM = "preceptor doctor"
PROBE_LENGTH = 8
"""Tokens of the probe's prompt, and of its response."""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status: 0 unless a check failed."""
    try:
        settings = load_settings(DoctorSettings, arguments, program=PROGRAM)
        find_access(**settings.access())
    except InvalidSettingsError as error:
        complain(str(error))
        return INVALID_SETTINGS
    except ValueError as error:  # a key or a certificate that cannot be used
        complain(f"{PROGRAM}: {error}")
        return INVALID_SETTINGS
    found = asyncio.run(examine(settings))
    if settings.as_json:
        sys.stdout.write(json.dumps(as_plain(found), indent=2) + "\n")
    else:
        show(found, console=Console())
    return exit_status(found.checks)


def exit_status(found: Iterable[Check]) -> int:
    """0 unless a check failed."""
    return FAILED if any(check.outcome is Outcome.FAIL for check in found) else 0


async def examine(settings: DoctorSettings) -> Examination:
    """All checks in order; ends early where the rest could not be answered."""
    resolved = await check_addresses(settings)
    if any(check.outcome is Outcome.FAIL for check in resolved):
        return Examination(checks=resolved)
    async with TeacherClient(settings.address, timeout_seconds=settings.timeout_seconds, **settings.access()) as client:
        started = time.perf_counter()
        try:
            info = await client.info()
        except PreceptorError as error:
            change = "start the server, or correct --address; look for a firewall between here and there"
            failed = Check(name="server", outcome=Outcome.FAIL, found=str(error), change=change)
            return Examination(checks=(*resolved, failed))
        answered = Check(name="server", outcome=Outcome.OK, found=f"answered in {_ms_since(started):.1f} ms")
        version = checks.check_version(info, client_version=preceptor.__version__)
        hosted, teacher = checks.check_teacher(info, name=settings.teacher)
        found = [*resolved, answered, version, hosted]
        if teacher is None:
            return Examination(checks=tuple(found))
        work = _workload(settings)
        probe_k = min(settings.top_k, info.limits.max_top_k, teacher.vocabulary_size)
        student = await check_student(client, settings=settings, teacher=teacher, top_k=probe_k)
        found += student.checks
        found.append(checks.check_top_k(info.limits, teacher=teacher, work=work))
        found += checks.check_lengths(info.limits, teacher=teacher, work=work)
        found.append(await probe(client, teacher=teacher, top_k=probe_k))
    batch_check, pretraining = await check_batch(settings, found=found)
    return Examination(checks=(*found, *batch_check), student=student, pretraining=pretraining)


def _workload(settings: DoctorSettings) -> Workload:
    return Workload(
        top_k=settings.top_k,
        num_responses=settings.num_responses,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_response_tokens=settings.max_response_tokens,
    )


async def check_addresses(settings: DoctorSettings) -> tuple[Check, ...]:
    """Each address is one; each of several answers, for a run would go on without it and say so in its log alone."""
    try:
        addresses = checked_addresses(settings.address)
    except ValueError as error:
        return (Check(name="address", outcome=Outcome.FAIL, found=str(error), change="write --address HOST:PORT"),)
    access = find_access(**settings.access())
    try:
        for address in addresses:
            access.check(address, host=split_address(address)[0], is_secure=access.is_secure(address))
    except ValueError as error:
        change = "name the server's authority with --ca, write grpcs:// before --address, or add --insecure-key"
        return (Check(name="address", outcome=Outcome.FAIL, found=str(error), change=change),)
    resolved = [check_address(address) for address in addresses]
    if len(addresses) == 1 or any(check.outcome is Outcome.FAIL for check in resolved):
        return tuple(resolved)
    return (*resolved, *(await asyncio.gather(*(check_replica(address, settings=settings) for address in addresses))))


async def check_replica(address: str, *, settings: DoctorSettings) -> Check:
    """One of several servers answers."""
    async with TeacherClient(address, timeout_seconds=settings.timeout_seconds, **settings.access()) as client:
        try:
            await client.info()
        except PreceptorError as error:
            change = "start this server, or leave it out of --address"
            return Check(name=f"replica {address}", outcome=Outcome.FAIL, found=str(error), change=change)
    return Check(name=f"replica {address}", outcome=Outcome.OK, found="answered")


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


async def check_student(
    client: TeacherClient, *, settings: DoctorSettings, teacher: TeacherInfo, top_k: int
) -> StudentExam:
    """How the student's tokenizer aligns with the teacher's, and what a sentence of the student's is worth there."""
    if not settings.student:
        return StudentExam(checks=(Check(name="tokenizer", outcome=Outcome.SKIPPED, found="needs --student"),))
    try:
        student = await asyncio.to_thread(
            load_student,
            settings.student,
            gguf_file=settings.student_gguf_file,
            chat_template=settings.student_chat_template,
            end_token_ids=settings.student_end_token_ids,
        )
    except InvalidStudentError as error:
        return StudentExam(checks=(check_vocabulary(error),))
    except ImportError as error:
        return _no_tokenizer(error, change="run `pip install 'preceptor[train]'`")
    except (OSError, ValueError) as error:
        return _no_tokenizer(error, change="correct --student, or unset HF_HUB_OFFLINE where it shall be downloaded")
    exam = await examine_student(
        client,
        student=student,
        teacher=teacher,
        teacher_end_token_ids=settings.teacher_end_token_ids,
        special_pairs=settings.special_pairs,
        top_k=top_k,
    )
    return replace(exam, checks=(check_vocabulary(student), *exam.checks))


def _no_tokenizer(error: Exception, *, change: str) -> StudentExam:
    return StudentExam(checks=(Check(name="tokenizer", outcome=Outcome.FAIL, found=str(error), change=change),))


async def check_batch(
    settings: DoctorSettings, *, found: Sequence[Check]
) -> tuple[tuple[Check, ...], Pretraining | None]:
    """The check of one batch of rollouts and what was measured; none where no prompts are named."""
    if not settings.prompts:
        return (), None
    if failed := [check.name for check in found if check.outcome is Outcome.FAIL]:
        skipped = Check(name=BATCH_CHECK, outcome=Outcome.SKIPPED, found=f"needs the rest to be right: {failed[0]}")
        return (skipped,), None
    check, pretraining = await asyncio.to_thread(examine_batch, settings)
    return (check,), pretraining


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
