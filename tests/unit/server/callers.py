"""Callers for tests: by default each is the only one of a tenant of its own."""

from __future__ import annotations

from preceptor_server.callers import Caller
from preceptor_server.tenants.tenant import Tenant


def caller_of(
    name: str, *, tenant: str = "", tenant_weight: float = 1.0, weight: float = 1.0, priority: int = 0
) -> Caller:
    return Caller(
        tenant=Tenant(name=tenant or name, weight=tenant_weight),
        name=name,
        transport="grpc",
        weight=weight,
        priority=priority,
    )
