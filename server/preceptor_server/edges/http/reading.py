"""Bounds how many bodies are read at once, of all callers and of each tenant."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from preceptor_server.tenants.tenant import Tenant


class ReadingSlots:
    """A tenant has at most half of them, so that one whose bodies trickle in never stops the others."""

    def __init__(self, num_slots: int) -> None:
        """At least two."""
        num_slots = max(2, num_slots)
        self._slots = asyncio.Semaphore(num_slots)
        self._max_of_tenant = num_slots // 2
        self._slots_of: dict[str, asyncio.Semaphore] = {}
        self._users_of: Counter[str] = Counter()

    @asynccontextmanager
    async def slot(self, tenant: Tenant) -> AsyncIterator[None]:
        """Waits for one, and keeps it while the block runs."""
        own = self._slots_of.setdefault(tenant.name, asyncio.Semaphore(self._max_of_tenant))
        self._users_of[tenant.name] += 1
        try:
            async with own, self._slots:
                yield
        finally:
            self._users_of[tenant.name] -= 1
            if not self._users_of[tenant.name]:
                del self._users_of[tenant.name], self._slots_of[tenant.name]
