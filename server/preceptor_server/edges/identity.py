"""Who asks, by the headers and the address of a call. Knows no transport's own types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from preceptor.wire import CALLER_METADATA_KEY

from preceptor_server.callers import Caller, Transport
from preceptor_server.serving import Notes
from preceptor_server.tenants.config import AccessConfig
from preceptor_server.tenants.directory import TenantDirectory
from preceptor_server.tenants.keys import bearer_key
from preceptor_server.tenants.tenant import Tenant

AUTHORIZATION = "authorization"
CALLER_KEYS = (CALLER_METADATA_KEY, "x-gateway-inference-fairness-id")
OBJECTIVE_KEYS = ("preceptor-objective", "x-gateway-inference-objective")
MAX_NAME = 128


class Directory(Protocol):
    """Knows tenants by their keys."""

    @property
    def has_keys(self) -> bool:
        """Whether tenants are told apart by keys; if not, by their addresses."""

    def peer_name(self, peer: str) -> str:
        """The address of a peer as quotas and logs shall have it."""

    def identify(self, key: str | None, *, peer: str) -> Tenant:
        """Raises UnauthenticatedError."""


class RefusalObserver(Protocol):
    """Counts calls that were refused before they reached a teacher."""

    def refused(self, error: Exception, *, caller: Caller | None, peer: str, method: str, transport: Transport) -> None:
        """`caller` is None where it is not known who asks."""


class Identity:
    """Makes a Caller of what a call says about itself."""

    def __init__(self, directory: Directory | None = None, *, objectives: Mapping[str, int] | None = None) -> None:
        """`objectives` are priorities by name; an unknown name has priority 0."""
        self._directory: Directory = directory or TenantDirectory(AccessConfig())
        self._objectives = dict(objectives or {})

    @property
    def has_keys(self) -> bool:
        """Whether tenants are told apart by keys."""
        return self._directory.has_keys

    def peer_name(self, peer: str) -> str:
        """The address of a peer, without its port."""
        return self._directory.peer_name(peer)

    def caller_of(self, headers: Mapping[str, str], *, peer: str, transport: Transport, weight: float = 1.0) -> Caller:
        """`headers` have lower-case names; `peer` is what gRPC or an ASGI server calls it. Raises UnauthenticatedError,
        and QuotaExceededError after many wrong keys from one peer."""
        tenant, peer = (
            self._directory.identify(bearer_key(headers.get(AUTHORIZATION)), peer=peer),
            self._directory.peer_name(peer),
        )
        name = next((headers[key] for key in CALLER_KEYS if headers.get(key)), "")
        objective = next((headers[key] for key in OBJECTIVE_KEYS if headers.get(key)), "")
        return Caller(
            tenant=tenant,
            name=name[:MAX_NAME] or (peer if transport == "grpc" else f"{transport}:{peer}"),
            transport=transport,
            weight=weight,
            priority=self._objectives.get(objective, 0),
        )


def notes_of(headers: Mapping[str, str]) -> Notes:
    """The trace that a call belongs to."""
    return Notes(traceparent=headers.get("traceparent", ""), tracestate=headers.get("tracestate", ""))
