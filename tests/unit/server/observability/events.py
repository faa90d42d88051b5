"""Events as the edges and the scheduler would tell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from preceptor_server.observability.observer import OK, BatchDone, Outcome, Transport
from preceptor_server.observability.state_metrics import TeacherState


@dataclass(frozen=True, slots=True, kw_only=True)
class SomeTenant:
    name: str = "acme"


@dataclass(frozen=True, slots=True, kw_only=True)
class SomeCaller:
    tenant: SomeTenant = field(default_factory=SomeTenant)
    name: str = "trainer-1"
    transport: Transport = "grpc"


@dataclass(frozen=True, slots=True, kw_only=True)
class SomeWaiting:
    groups: int = 1
    tokens: int = 10
    num_bytes: int = 100


def caller(tenant: str = "acme", *, transport: Transport = "grpc", name: str = "trainer-1") -> SomeCaller:
    return SomeCaller(tenant=SomeTenant(name=tenant), name=name, transport=transport)


def outcome(
    tenant: str = "acme",
    *,
    teacher: str = "teacher",
    reason: str = OK,
    transport: Transport = "grpc",
    total_seconds: float = 0.1,
    queue_seconds: float | None = 0.02,
    num_positions: int = 7,
) -> Outcome:
    return Outcome(
        caller=caller(tenant, transport=transport),
        teacher=teacher,
        reason=reason,
        total_seconds=total_seconds,
        queue_seconds=queue_seconds,
        num_positions=num_positions,
        num_prompt_tokens=3,
        num_response_tokens=5,
        request_bytes=1000,
        answer_bytes=2000,
    )


def batch_done(
    *, computed_by_tenant: Mapping[str, int] | None = None, max_tokens: int = 100, reason: str = OK
) -> BatchDone:
    return BatchDone(
        num_groups=3,
        num_tokens=100,
        num_reused_tokens=20,
        max_tokens=max_tokens,
        seconds=0.5,
        reason=reason,
        computed_by_tenant=computed_by_tenant or {"acme": 80},
    )


def state(waiting_by_tenant: Mapping[str, SomeWaiting] | None = None, *, num_groups_in_flight: int = 0) -> TeacherState:
    return TeacherState(
        waiting_by_tenant=waiting_by_tenant or {},
        num_groups_in_flight=num_groups_in_flight,
        num_tokens_in_flight=50 * num_groups_in_flight,
        engine="hf",
        revision="r1",
    )
