"""What the HTTP side answers, as frozen dataclasses: docs/http.md says what the fields mean. No network, no arrays."""

# T = tokens of a response, N = its scored positions, M = the teacher's tokens for it

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from preceptor_client.types import Timings

Logprob = float | None
"""None is minus infinity: JSON has no such number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedTeacher:
    """What `/v1/info` says of one teacher, as far as it is shown."""

    name: str
    engine: str
    model: str
    dtype: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """`/v1/info`."""

    teachers: tuple[HostedTeacher, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """One response of `/v1/topk`."""

    ids: tuple[int, ...]
    status: tuple[str, ...]
    positions: tuple[int, ...]
    sampled_logprobs: tuple[Logprob, ...]
    log_tail_mass: tuple[Logprob, ...]
    entropies: tuple[float, ...] | None
    support_ids: tuple[tuple[int, ...], ...]
    support_logprobs: tuple[tuple[Logprob, ...], ...]
    teacher_ids: tuple[int, ...] | None
    teacher_rows: tuple[int, ...] | None
    unmapped_mass: float
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Topk:
    """`/v1/topk`."""

    teacher: str
    revision: str
    adapter: str
    tokenizer_id: str
    top_k: int
    temperature: float
    segmentation: str
    prompt_ids: tuple[int, ...]
    responses: tuple[ScoredResponse, ...]
    texts: Mapping[str, str]
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request in `/v1/requests`."""

    number: int
    at: float
    """Seconds since 1970."""
    transport: str
    caller: str
    request_id: str
    tokenizer_id: str
    adapter: str
    num_prompt_tokens: int
    num_responses: int
    num_positions: int
    top_k: int
    temperature: float
    outcome: str
    """ok, or a reason."""
    mean_sampled_logprob: float | None
    preview: str
    """The first characters of the prompt."""
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """`/v1/requests`."""

    records: tuple[Record, ...]
    last: int
    """Number of the newest; 0 where there is none."""
    is_recording: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """`/v1/stats`."""

    uptime_seconds: float
    is_serving: bool
    queue_groups: int
    queue_tokens: int
    max_queue_tokens: int
    tokens_in_flight: int
    requests_total: int
    failed_total: int
    positions_total: int
    positions_per_second: float
