"""What is answered over HTTP, for /openapi.json and for whoever checks an answer. Nothing is computed here."""

# T = tokens of a response, N = its scored positions, K = support size, C = candidates per position, M = tokens of the
# teacher

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from preceptor_server.edges.http.requests import Segmentation

Status = Literal["ok", "excluded", "non_finite", "special", "misaligned", "unmapped", "beyond_context"]
Logprob = float | None


class Answered(BaseModel):
    """A part of an answer: it has these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class ProblemDetails(Answered):
    """Why there is no answer (RFC 9457)."""

    type: str
    """Always about:blank: `reason` says more."""
    title: str
    """The status in words."""
    status: int = Field(ge=400, le=599)
    """The HTTP status."""
    detail: str
    """What is wrong and what to change."""
    reason: str = Field(pattern="^[A-Z0-9_]+$")
    """For programs, as in gRPC's ErrorInfo: such as TOKEN_OUT_OF_RANGE."""
    field: str | None
    """The body's field at fault, such as responses[0].ids."""
    retry_after_seconds: float | None
    """When to ask again. null: asking again will not help."""


class TimingsAnswer(Answered):
    """Where the time went, in milliseconds."""

    decode_ms: float
    """Reading and validating."""
    queue_ms: float
    """Waiting for a place in a batch."""
    forward_ms: float
    """The forward, which others may have shared."""
    total_ms: float
    """All of it, without the writing of the answer, and without the wait for a turn among HTTP's callers."""


class ResponseAnswer(Answered):
    """What the teacher thinks of one response. Row i of every column of N belongs to token positions[i]. Logprobs are
    natural, over the whole vocabulary at the temperature; null is minus infinity."""

    ids: list[int]
    """[T]"""
    status: list[Status]
    """[T]. Those that are ok have a row."""
    positions: list[int]
    """[N]"""
    sampled_logprobs: list[Logprob]
    """[N] of the response's own tokens."""
    sampled_ranks: list[int | None]
    """[N] their places in the support, from 1; null outside it."""
    log_tail_mass: list[Logprob]
    """[N] log of the mass outside the support."""
    entropies: list[float | None] | None
    """[N] over the whole vocabulary, in nats; null where the engine does not compute them."""
    support_ids: list[list[int]]
    """[N, K] by descending logprob."""
    support_logprobs: list[list[Logprob]]
    """[N, K]"""
    candidate_ids: list[list[int]] | None
    """[N, C] as asked for, at the scored positions."""
    candidate_logprobs: list[list[Logprob]] | None
    """[N, C]"""
    student_logprobs: list[float] | None
    """[T] as sent."""
    teacher_ids: list[int] | None
    """[M] what the teacher read in place of the response; null where that is the response itself."""
    teacher_rows: list[int] | None
    """[N] before which of these the teacher was asked."""
    unmapped_mass: float
    """Mean mass of the teacher's likeliest tokens that have no place in the response's vocabulary; part of the tail."""
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the ids that were scored, as in gRPC."""


class TopkAnswer(Answered):
    """What the teacher thinks of a group."""

    request_id: str
    """As asked."""
    teacher: str
    """Who answered."""
    revision: str
    """Of its weights."""
    adapter: str
    """As applied."""
    tokenizer_id: str
    """Whose ids the responses' are."""
    top_k: int
    """K."""
    temperature: float
    """As applied."""
    segmentation: Segmentation
    """As applied."""
    prompt_ids: list[int]
    """In the teacher's ids, as scored."""
    responses: list[ResponseAnswer]
    """In the order of the request; without responses in it, one."""
    texts: dict[str, str]
    """By id, of the tokenizer of the responses. Empty where this server does not have it (any more)."""
    teacher_texts: dict[str, str]
    """By id, of the teacher's: prompt_ids and teacher_ids."""
    timings: TimingsAnswer
    """Where the time went."""


class RecordAnswer(Answered):
    """One group that was asked for."""

    number: int
    """From 1 on, in the order of the answers; what /v1/requests/{number} takes."""
    at: float
    """When, in seconds since 1970."""
    transport: Literal["grpc", "http"]
    """How it was asked for."""
    caller: str
    """The name that it gave itself over gRPC, else where from."""
    request_id: str
    """As asked."""
    tokenizer_id: str
    """Whose ids the responses' are."""
    adapter: str
    """As asked."""
    num_prompt_tokens: int
    """0 where it failed."""
    num_responses: int
    """As asked."""
    num_positions: int
    """Scored ones."""
    top_k: int
    """K."""
    temperature: float
    """As asked."""
    outcome: str
    """ok, or the reason of the failure."""
    mean_sampled_logprob: float | None
    """Over all scored positions."""
    preview: str
    """First characters of the prompt."""
    total_ms: float
    """How long it took, in milliseconds."""


class RecordsAnswer(Answered):
    """Some of the groups that were scored last."""

    records: list[RecordAnswer]
    """By ascending number."""
    last: int
    """The newest number; 0 before there is one."""
    is_recording: bool
    """Whether http.record is above 0."""


class StatsAnswer(Answered):
    """The queue and the throughput at this moment."""

    uptime_seconds: float
    """Since the server started."""
    is_serving: bool
    """Whether the engine answers."""
    queue_groups: int
    """Groups that wait for a batch."""
    queue_tokens: int
    """Their tokens."""
    max_queue_tokens: int
    """How many may wait."""
    tokens_in_flight: int
    """What the engine works on."""
    requests_total: int
    """Groups asked for so far, of both transports."""
    failed_total: int
    """Those that failed."""
    positions_total: int
    """Positions scored so far."""
    positions_per_second: float
    """Over the last 10 s."""


class HealthAnswer(Answered):
    """It lives, or serves."""

    status: Literal["alive", "serving"]
    """Which of the two was asked."""
