"""What a way tells of one job, as the caller sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STAGES = ("decode", "queue", "forward", "rest", "wire")
"""Of a request: reading it; waiting for a batch; the batch's forward, head included; what else the server did; and
what the caller waited beyond that, its own encoding, decoding and checking included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One job, done. None where a way has no such thing."""

    seconds: float
    latencies: Sequence[float]
    """Of each request, in seconds."""
    num_positions: int
    """That came back, counted in the answers."""
    reply_bytes: int | None = None
    """Serialised answers, without headers of the transport."""
    mean_sampled_logprob: float | None = None
    """Over all positions: shows that all ways asked the same model for the same tokens."""
    stage_shares: Mapping[str, float] | None = None
    """By STAGES, of the sum of the requests' latencies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """Of one request, in seconds."""

    latency: float
    decode: float
    queue: float
    forward: float
    server: float
    """From its arrival until its answer was built."""


def shares_of(requests: Sequence[RequestTimes]) -> dict[str, float]:
    """What each stage took, over what all requests took."""
    sums = dict.fromkeys(STAGES, 0.0)
    for one in requests:
        sums["decode"] += one.decode
        sums["queue"] += one.queue
        sums["forward"] += one.forward
        sums["rest"] += one.server - one.decode - one.queue - one.forward
        sums["wire"] += one.latency - one.server
    total = sum(one.latency for one in requests)
    return {stage: seconds / total for stage, seconds in sums.items()}
