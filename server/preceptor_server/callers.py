"""Who asks: a tenant, and the name that it gives itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from preceptor_server.tenants.tenant import Tenant

Transport = Literal["grpc", "http"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and by which way."""

    tenant: Tenant
    name: str
    """What it calls itself; divides the tenant's share and never adds to it."""
    transport: Transport
    weight: float = 1.0
    """Among the tenant's callers."""
    priority: int = 0
    """Among the tenant's own groups: higher first."""
