"""What `preceptor doctor` looks at, one pure function per question. Knows nothing of connections or of printing."""

# T = tokens of a response, K = support size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from preceptor.wire import PositionStatus, token_dtype_for

from preceptor_client.types import GroupScores, Limits, ServerInfo, TeacherInfo

LARGE_DIFFERENCE_NATS = 0.02
"""Two runs of one probe differ by less than this in bfloat16, whatever they were batched with."""
_BYTES_PER_POSITION = 1 + 4 + 4 + 4  # status, sampled logprob, tail mass, entropy
_BYTES_PER_F16 = 2


class Outcome(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer."""

    name: str
    outcome: Outcome
    found: str
    change: str = ""
    """What to change; empty where all is well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a trainer is going to ask for."""

    top_k: int
    num_responses: int
    max_prompt_tokens: int | None
    max_response_tokens: int | None


def check_version(info: ServerInfo, *, client_version: str) -> Check:
    """Both sides run the same release."""
    found = f"server {info.server_version}, client {client_version}"
    if info.server_version == client_version:
        return Check(name="version", outcome=Outcome.OK, found=found)
    change = f"install preceptor=={info.server_version} here, or {client_version} there"
    return Check(name="version", outcome=Outcome.WARN, found=found, change=change)


def check_teacher(info: ServerInfo, *, name: str) -> tuple[Check, TeacherInfo | None]:
    """The teacher that was named exists, or there is only one."""
    names = ", ".join(teacher.name for teacher in info.teachers) or "none"
    matching = [teacher for teacher in info.teachers if name in ("", teacher.name)]
    if len(matching) == 1:
        teacher = matching[0]
        found = f"{teacher.name}: {teacher.model}, {teacher.engine}, {teacher.dtype} on {teacher.device}"
        return Check(name="teacher", outcome=Outcome.OK, found=f"{found}, revision {teacher.revision}"), teacher
    change = f"set --teacher to one of: {names}"
    return Check(
        name="teacher", outcome=Outcome.FAIL, found=f"{name or 'unnamed'}; hosted: {names}", change=change
    ), None


def check_top_k(limits: Limits, *, teacher: TeacherInfo, work: Workload) -> Check:
    """K is within the server's limit and the vocabulary."""
    largest = min(limits.max_top_k, teacher.vocabulary_size)
    return _at_most("top-k", work.top_k, largest, unit="tokens", change=f"lower --top-k to at most {largest}")


def check_lengths(limits: Limits, *, teacher: TeacherInfo, work: Workload) -> list[Check]:
    """Context, group and message hold what the trainer will send."""
    P, T, G = work.max_prompt_tokens, work.max_response_tokens, work.num_responses
    responses = _at_most("responses", G, limits.max_responses, unit="per group", change="lower --num-responses")
    if P is None or T is None:
        found = "needs --max-prompt-tokens and --max-response-tokens"
        return [responses, Check(name="lengths", outcome=Outcome.SKIPPED, found=found)]
    shorter = "lower --max-prompt-tokens or --max-response-tokens"
    request_bytes, answer_bytes = estimate_message_bytes(teacher, work=work)
    largest = max(request_bytes, answer_bytes)
    fewer = "lower --num-responses, --top-k or --max-response-tokens, or raise the server's max_message_bytes"
    return [
        responses,
        _at_most("context", P + T, teacher.max_model_len, unit="tokens", change=shorter),
        _at_most("group", P + G * T, limits.max_group_tokens, unit="tokens", change=f"{shorter}, or --num-responses"),
        _at_most("message", largest, limits.max_message_bytes, unit="bytes", change=fewer),
    ]


def estimate_message_bytes(teacher: TeacherInfo, *, work: Workload) -> tuple[int, int]:
    """Bytes of the largest request and of its answer in F16; headers, below a kilobyte, left out."""
    P, T, G = work.max_prompt_tokens or 0, work.max_response_tokens or 0, work.num_responses
    bytes_per_id = 2 * int(token_dtype_for(teacher.vocabulary_size))
    request_bytes = (P + G * T) * bytes_per_id
    answer_bytes = G * T * (work.top_k * (bytes_per_id + _BYTES_PER_F16) + _BYTES_PER_POSITION)
    return request_bytes, answer_bytes


def check_probe(first: GroupScores, second: GroupScores, *, round_trips_ms: Sequence[float]) -> Check:
    """One sequence scored twice: every position is there, and both runs say the same."""
    took = "round trips " + ", ".join(f"{milliseconds:.1f} ms" for milliseconds in round_trips_ms)
    missing = [int((scores.responses[0].status_T != PositionStatus.OK).sum()) for scores in (first, second)]
    if any(missing):
        found = f"{max(missing)} of {len(first.responses[0].status_T)} positions came without a score; {took}"
        change = "look into the teacher's log: a model that yields NaN cannot teach"
        return Check(name="probe score", outcome=Outcome.FAIL, found=found, change=change)
    difference = largest_difference(first, second)
    found = f"digests agree, two runs differ by at most {difference:.2g} nats; {took}"
    if difference <= LARGE_DIFFERENCE_NATS:
        return Check(name="probe score", outcome=Outcome.OK, found=found)
    change = "compare the server's dtype and engine with what was intended"
    return Check(name="probe score", outcome=Outcome.WARN, found=found, change=change)


def largest_difference(first: GroupScores, second: GroupScores) -> float:
    """Largest |difference| of two scores of the same text, in nats, over sampled tokens and supports by rank.

    By rank, so that two near-equal tokens which change places count with the little by which they differ.
    """
    a, b = first.responses[0], second.responses[0]
    sampled = np.abs(a.sampled_logprobs_N - b.sampled_logprobs_N).max()
    return float(max(sampled, np.abs(a.support_logprobs_NK - b.support_logprobs_NK).max()))


def _at_most(name: str, asked: int, largest: int, *, unit: str, change: str) -> Check:
    found = f"{asked} {unit}, at most {largest}"
    if asked <= largest:
        return Check(name=name, outcome=Outcome.OK, found=found)
    return Check(name=name, outcome=Outcome.FAIL, found=found, change=change)
