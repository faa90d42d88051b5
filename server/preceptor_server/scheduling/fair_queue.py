"""Orders what waits, fairly: tenants by weight, a tenant's callers by weight. Knows no clocks and no batches."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from preceptor_server.callers import Caller
from preceptor_server.scheduling.lazy_heap import LazyHeap
from preceptor_server.scheduling.turns import Flow, Turns

_MAX_INDEBTED_TENANTS = 1024
_MAX_INDEBTED_CALLERS = 256
"""Of one tenant. Beyond these the smallest debts are forgiven, so that names alone fill no memory."""


class Queued(Protocol):
    """What the queue must know of an entry. Entries are told apart by identity."""

    order: int
    """When it came, among all entries; the queue sets it at the first push."""

    @property
    def caller(self) -> Caller: ...


QueuedT = TypeVar("QueuedT", bound=Queued)


class _CallerFlow(Flow, Generic[QueuedT]):
    __slots__ = ("entries", "num_aside")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.entries: LazyHeap[QueuedT] = LazyHeap()
        self.num_aside = 0


class _TenantFlow(Flow, Generic[QueuedT]):
    __slots__ = ("callers", "num_aside")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.callers: Turns[_CallerFlow[QueuedT]] = Turns(max_debtors=_MAX_INDEBTED_CALLERS)
        self.num_aside = 0


class FairQueue(Generic[QueuedT]):
    """Start-time fair queueing in two levels (see `turns.py`); every operation is O(log n).

    Of a tenant's entries those of higher priority come first, then its callers by their tags, then the oldest.
    Tenants do not gain by priorities, nor by names of callers.
    """

    def __init__(self) -> None:
        self._tenants: Turns[_TenantFlow[QueuedT]] = Turns(max_debtors=_MAX_INDEBTED_TENANTS)
        self._waiting: dict[QueuedT, tuple[_TenantFlow[QueuedT], _CallerFlow[QueuedT]]] = {}
        self._aside: dict[QueuedT, tuple[_TenantFlow[QueuedT], _CallerFlow[QueuedT]]] = {}
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._aside)

    def __contains__(self, entry: QueuedT) -> bool:
        return entry in self._waiting or entry in self._aside

    @property
    def num_remembered(self) -> int:
        """Tenants that wait or still owe something."""
        return len(self._tenants)

    def num_remembered_callers(self, tenant: str) -> int:
        """Callers of that tenant that wait or still owe something."""
        flow = self._tenants.get(tenant)
        return 0 if flow is None else len(flow.callers)

    def push(self, entry: QueuedT) -> None:
        """One that was here before, as a group that is computed in slices, takes its old place among its caller's."""
        if not entry.order:
            self._num_pushed += 1
            entry.order = self._num_pushed
        tenant_name, caller_name = entry.caller.tenant.name, entry.caller.name
        tenant = self._tenants.get(tenant_name) or _TenantFlow(tenant_name)
        caller = tenant.callers.get(caller_name) or _CallerFlow(caller_name)
        assert not self._aside, "a batch is taken at one go"
        if tenant.callers.first() is None:
            self._tenants.join(tenant, weight=entry.caller.tenant.weight)
        if not len(caller.entries):
            caller.priority = entry.caller.priority
            tenant.callers.join(caller, weight=entry.caller.weight)
        self._add(entry, caller, tenant)
        self._waiting[entry] = tenant, caller

    def remove(self, entry: QueuedT) -> bool:
        """Takes out an entry that waits, free of charge; False where it does not."""
        place = self._waiting.pop(entry, None)
        if place is not None:
            self._withdraw(entry, *place)
            self._settle(*place)
            return True
        place = self._aside.pop(entry, None)
        if place is not None:
            self._leave_aside(*place)
            place[0].callers.pass_nobody_over()
            self._settle(*place)
        return place is not None

    def first(self) -> QueuedT | None:
        """The entry whose turn it is."""
        tenant = self._tenants.first()
        caller = tenant.callers.first() if tenant is not None else None
        return caller.entries.first() if caller is not None else None

    def take(self, entry: QueuedT, *, cost: float) -> None:
        """Takes out an entry that waits, and charges its caller and its tenant."""
        tenant, caller = place = self._waiting.pop(entry)
        tenant.callers.serve(caller, cost)
        self._tenants.serve(tenant, cost)
        self._withdraw(entry, *place)
        self._settle(*place)

    def charge(self, caller: Caller, cost: float) -> None:
        """What it was served cost this much more than it was taken for (less, if negative)."""
        tenant = self._tenants.get(caller.tenant.name)
        if tenant is None:
            tenant = _TenantFlow(caller.tenant.name)
            self._tenants.indebt(tenant, cost, weight=caller.tenant.weight)
        else:
            self._tenants.charge(tenant, cost)
        flow = tenant.callers.get(caller.name)
        if flow is None:
            tenant.callers.indebt(_CallerFlow(caller.name), cost, weight=caller.weight)
        else:
            tenant.callers.charge(flow, cost)

    def set_aside(self, entry: QueuedT) -> None:
        """It keeps its place, and is passed over until `restore`."""
        tenant, caller = place = self._waiting.pop(entry)
        self._aside[entry] = place
        tenant.num_aside += 1
        caller.num_aside += 1
        self._tenants.pass_over(tenant)
        tenant.callers.pass_over(caller)
        self._withdraw(entry, *place)

    def restore(self) -> None:
        """Puts everything back that was set aside."""
        for entry, (tenant, caller) in self._aside.items():
            self._leave_aside(tenant, caller)
            self._add(entry, caller, tenant)
            self._waiting[entry] = tenant, caller
            self._tenants.rejoin(tenant)
            tenant.callers.pass_nobody_over()
        self._tenants.pass_nobody_over()
        self._aside.clear()

    def pay_debts(self, cost: float) -> None:
        """What could have been served while nothing waited and nothing was in flight."""
        self._tenants.pay(cost)

    def _add(self, entry: QueuedT, caller: _CallerFlow[QueuedT], tenant: _TenantFlow[QueuedT]) -> None:
        caller.entries.put(entry, (-entry.caller.priority, 0.0, entry.order))
        self._rank(caller, tenant)

    def _rank(self, caller: _CallerFlow[QueuedT], tenant: _TenantFlow[QueuedT]) -> None:
        """By the priority of the entry that is first now."""
        first = caller.entries.first()
        assert first is not None, "only a flow with entries has a rank"
        caller.priority = first.caller.priority
        tenant.callers.rejoin(caller)

    def _withdraw(self, entry: QueuedT, tenant: _TenantFlow[QueuedT], caller: _CallerFlow[QueuedT]) -> None:
        caller.entries.discard(entry)
        if len(caller.entries):
            self._rank(caller, tenant)
        else:
            tenant.callers.stand_aside(caller)
        if tenant.callers.first() is None:
            self._tenants.stand_aside(tenant)

    def _settle(self, tenant: _TenantFlow[QueuedT], caller: _CallerFlow[QueuedT]) -> None:
        """Has flows leave that have nothing here any more."""
        if not len(caller.entries) and not caller.num_aside:
            tenant.callers.leave(caller)
        if tenant.callers.first() is None and not tenant.num_aside:
            self._tenants.leave(tenant)

    @staticmethod
    def _leave_aside(tenant: _TenantFlow[QueuedT], caller: _CallerFlow[QueuedT]) -> None:
        tenant.num_aside -= 1
        caller.num_aside -= 1
