"""What metrics and traces cost: a scrape with 1,000 tenants beside prometheus_client's, and what a call pays.

    python -m bench.observability

Processor time of the thread, the least of several rounds: the machine may be busy with other things.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from preceptor_server.observability.health import Health
from preceptor_server.observability.metrics import Metrics
from preceptor_server.observability.observer import BatchDone, Observers, Outcome, Refusal
from preceptor_server.observability.state_metrics import TeacherState
from preceptor_server.observability.tracing import NO_TRACING
from prometheus_client import CollectorRegistry, Counter, generate_latest

NUM_TENANTS = 1000
ROUNDS = 9


@dataclass(frozen=True)
class Tenant:
    """A tenant."""

    name: str


@dataclass(frozen=True)
class Caller:
    """A caller."""

    tenant: Tenant
    name: str = "trainer"
    transport: Literal["grpc", "http"] = "grpc"


@dataclass(frozen=True)
class Waiting:
    """What waits of a tenant."""

    groups: int = 3
    tokens: int = 3000
    num_bytes: int = 30_000


@dataclass
class Load:
    """Metrics that 1,000 tenants have filled."""

    tenants: list[str] = field(default_factory=lambda: [f"tenant-{number}" for number in range(NUM_TENANTS)])

    def metrics(self) -> Metrics:
        metrics, waiting = Metrics(health=Health(), version="1"), dict.fromkeys(self.tenants, Waiting())
        state = TeacherState(waiting_by_tenant=waiting, num_groups_in_flight=8, num_tokens_in_flight=4096)
        metrics.host("teacher", lambda: state)
        for tenant in self.tenants:
            metrics.began(Caller(Tenant(tenant)))
            metrics.ended(outcome(tenant))
            metrics.refused(Refusal(tenant=tenant, transport="grpc", method="Score", reason="RATE_LIMITED"))
        done = BatchDone(
            num_groups=8,
            num_tokens=4000,
            num_reused_tokens=100,
            max_tokens=4096,
            seconds=0.5,
            reason="ok",
            computed_by_tenant=dict.fromkeys(self.tenants, 4),
        )
        metrics.of_teacher("teacher").batch_done(done)
        return metrics

    def theirs(self, num_samples: int) -> CollectorRegistry:
        registry = CollectorRegistry()
        for number in range(num_samples // NUM_TENANTS):
            counter = Counter(f"c{number}", "A counter.", ["transport", "tenant", "teacher"], registry=registry)
            for tenant in self.tenants:
                counter.labels("grpc", tenant, "teacher").inc()
        return registry


def outcome(tenant: str) -> Outcome:
    caller = Caller(Tenant(tenant))
    return Outcome(
        caller=caller, teacher="teacher", reason="ok", total_seconds=0.5, queue_seconds=0.1, num_positions=500
    )


def least_seconds(call: Callable[[], object], *, repeats: int = 1) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(repeats):
            call()
        best = min(best, (time.thread_time() - started) / repeats)
    return best


def main() -> None:
    load = Load()
    metrics = load.metrics()
    num_lines = metrics.render().count(b"\n")
    registry = load.theirs(num_lines)
    ours, theirs = least_seconds(metrics.render), least_seconds(lambda: generate_latest(registry))
    print(f"scrape, {NUM_TENANTS} tenants, {num_lines} lines: {ours * 1e3:.1f} ms; ", end="")
    print(f"prometheus_client, counters with as many samples beside _created: {theirs * 1e3:.1f} ms")

    counting: Observers[Outcome] = Observers((metrics,))
    caller, ended = Caller(Tenant("tenant-5")), outcome("tenant-5")

    def observed() -> None:
        counting.began(caller)
        counting.ended(ended)

    def traced() -> None:
        with NO_TRACING.score(caller=caller, teacher="teacher") as call:
            call.ended(ended)

    print(f"a call, counted: {least_seconds(observed, repeats=20_000) * 1e6:.2f} us")
    print(f"a call, without a collector for traces: {least_seconds(traced, repeats=20_000) * 1e6:.2f} us")
    queued = least_seconds(lambda: NO_TRACING.batch((NO_TRACING.queued(),), teacher="t"), repeats=20_000)
    print(f"its wait and its batch, the same: {queued * 1e6:.2f} us")


if __name__ == "__main__":
    main()
