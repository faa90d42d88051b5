"""Decides whether a group may wait at all, and when to come back if not. Keeps memory bounded under overload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from preceptor_server.errors import QueueFullError
from preceptor_server.scheduling.config import SchedulerConfig
from preceptor_server.scheduling.job import Job
from preceptor_server.scheduling.speed import Speed
from preceptor_server.tenants.tenant import Tenant

_SHARE_OF_FREE = 2.0
"""A tenant may hold this many times what is free: alone 2/3 of the queue; of n that want more 2 / (2 n + 1) each. Some
is always free for a newcomer (dynamic thresholds: Choudhury, Hahne 1998)."""
_UNKNOWN_SECONDS = 1.0
_MIN_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 30.0
_HASTE = 1.5
"""The engine is taken to be this much faster than measured before a group is refused for its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How much waits."""

    groups: int = 0
    tokens: int = 0
    num_bytes: int = 0

    def plus(self, job: Job) -> Waiting:
        return Waiting(
            groups=self.groups + 1, tokens=self.tokens + job.num_tokens, num_bytes=self.num_bytes + job.num_bytes
        )

    def minus(self, job: Job) -> Waiting:
        return Waiting(
            groups=self.groups - 1, tokens=self.tokens - job.num_tokens, num_bytes=self.num_bytes - job.num_bytes
        )


_NOTHING = Waiting()


class Admission:
    """Bounds on what waits for a forward, in all and for each tenant; but for what waits for its next slice."""

    def __init__(self, config: SchedulerConfig, speed: Speed) -> None:
        self._bound = Waiting(
            groups=config.max_queue_groups, tokens=config.max_queue_tokens, num_bytes=config.max_queue_bytes
        )
        self._speed = speed
        self._waiting: set[Job] = set()
        self._total = _NOTHING
        self._by_tenant: dict[str, Waiting] = {}
        self._weights: dict[str, float] = {}
        self._total_weight = 0.0
        self._cost_by_line: dict[tuple[str, str, int], float] = {}
        """By tenant, caller and priority: entries of a line are served in the order of arrival."""

    @property
    def total(self) -> Waiting:
        return self._total

    @property
    def by_tenant(self) -> Mapping[str, Waiting]:
        """Of tenants of whom something waits."""
        return dict(self._by_tenant)

    def admit(self, job: Job, *, now: float) -> None:
        """Takes note of what is about to wait. Raises QueueFullError where the queue would pass a bound, and where the
        job could not start before its deadline."""
        tenant = job.caller.tenant
        self._check_own_bounds(job, tenant)
        self._check_bounds(job, tenant)
        self._check_deadline(job, now)
        self.hold(job)

    def hold(self, job: Job) -> None:
        """The same without a check, for what is to be computed again; nothing where it waits already."""
        if job in self._waiting:
            return
        tenant = job.caller.tenant
        self._waiting.add(job)
        self._total = self._total.plus(job)
        if tenant.name not in self._by_tenant:
            self._weights[tenant.name] = tenant.weight
            self._total_weight += tenant.weight
        self._by_tenant[tenant.name] = self._of(tenant).plus(job)
        line = _line(job)
        self._cost_by_line[line] = self._cost_by_line.get(line, 0.0) + job.cost

    def release(self, job: Job) -> None:
        """It waits no more, for whatever reason; nothing where it does not."""
        if job not in self._waiting:
            return
        self._waiting.discard(job)
        self._total = self._total.minus(job)
        name, line = job.caller.tenant.name, _line(job)
        left = self._by_tenant[name].minus(job)
        self._by_tenant[name] = left
        self._cost_by_line[line] -= job.cost
        if self._cost_by_line[line] < 1:  # a group costs at least 2, and sums of floats need not end at 0
            del self._cost_by_line[line]
        if not left.groups:
            del self._by_tenant[name]
            self._total_weight -= self._weights.pop(name)
            if not self._weights:
                self._total_weight = 0.0  # sums of floats need not end there

    def _of(self, tenant: Tenant) -> Waiting:
        return self._by_tenant.get(tenant.name, _NOTHING)

    def _check_own_bounds(self, job: Job, tenant: Tenant) -> None:
        after = self._of(tenant).plus(job)
        for unit, limit, name in (
            (after.tokens, tenant.max_queue_tokens, "max_queue_tokens"),
            (after.num_bytes, tenant.max_queue_bytes, "max_queue_bytes"),
        ):
            if limit is not None and unit > limit:
                raise self._full(f"{unit} would wait of tenant {tenant.name!r}, whose {name}={limit}", job)

    def _check_bounds(self, job: Job, tenant: Tenant) -> None:
        own, total, bound = self._of(tenant), self._total, self._bound
        for what, more, own_now, total_now, limit in (
            ("tokens", job.num_tokens, own.tokens, total.tokens, bound.tokens),
            ("bytes", job.num_bytes, own.num_bytes, total.num_bytes, bound.num_bytes),
            ("groups", 1, own.groups, total.groups, bound.groups),
        ):
            free = limit - total_now - more
            if free < 0:
                raise self._full(
                    f"{total_now} {what} wait already and {more} more would pass the server's max_queue_{what}={limit}",
                    job,
                )
            if own.groups and own_now + more > _SHARE_OF_FREE * free:
                raise self._full(
                    f"{own_now} {what} of tenant {tenant.name!r} wait already, and {more} more would leave too little "
                    f"of the server's max_queue_{what}={limit} to others",
                    job,
                )

    def _check_deadline(self, job: Job, now: float) -> None:
        if job.deadline is None:
            return
        ahead = self._speed.seconds_for(self._cost_by_line.get(_line(job), 0.0))
        if ahead is not None and ahead / _HASTE > job.deadline - now > 0:
            raise self._full(
                f"its deadline is in {job.deadline - now:.1f} s, and what the caller sent before takes {ahead:.1f} s",
                job,
            )

    def _full(self, message: str, job: Job) -> QueueFullError:
        return QueueFullError(message, retry_after_seconds=self._retry_seconds(job))

    def _retry_seconds(self, job: Job) -> float:
        """Until as much of its tenant's as it asks for has been served in fair order, at most all that waits."""
        tenant = job.caller.tenant
        others = self._total_weight - self._weights.get(tenant.name, 0.0)
        ahead = min(job.cost * (1 + others / tenant.weight), max(job.cost, self._total.tokens))
        seconds = self._speed.seconds_for(ahead)
        if seconds is None:
            return _UNKNOWN_SECONDS
        return min(max(seconds, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)


def _line(job: Job) -> tuple[str, str, int]:
    return job.caller.tenant.name, job.caller.name, job.caller.priority
