"""Bounds how many values a label takes: what callers name freely must not become as many time series."""

from __future__ import annotations

ANONYMOUS = "anonymous"
"""All tenants without a key."""
OTHER = "other"
"""All names beyond the bound."""
UNKNOWN = "unknown"
"""A teacher that was never hosted here, or a party that could not be told apart."""

_PEER = "peer:"


class BoundedNames:
    """Keeps the first `max_names` names that it meets; all others are OTHER."""

    def __init__(self, max_names: int) -> None:
        self._max_names = max_names
        self._names: dict[str, str] = {}

    def of(self, name: str) -> str:
        known = self._names.get(name)
        if known is not None:
            return known
        if len(self._names) >= self._max_names:
            return OTHER
        return self._names.setdefault(name, name)


class TenantLabels:
    """Tenants with a key by name, as far as the bound allows; the others as ANONYMOUS."""

    def __init__(self, max_tenants: int) -> None:
        self._names = BoundedNames(max_tenants)

    def of(self, tenant: str) -> str:
        if tenant.startswith(_PEER):
            return ANONYMOUS
        return self._names.of(tenant) if tenant else UNKNOWN
