"""Keeps each tenant within its own limits: calls at once, bytes in flight, tokens per second. Knows no queue.

The token rate is a bucket that holds a few seconds' worth. A group is let in while the bucket holds anything, and may
leave it in debt, since a group larger than the bucket could never be scored otherwise; the next waits until the debt is
paid. So the rate holds on average, and no burst passes it by more than the bucket and one group.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from preceptor_server.errors import InvalidRequestError, QuotaExceededError
from preceptor_server.tenants.tenant import Tenant

TOO_MANY_CALLS = "TOO_MANY_CALLS"
TOO_MANY_BYTES = "TOO_MANY_BYTES"
RATE_LIMITED = "RATE_LIMITED"

FORGOTTEN = "peer:*"
"""The name under which `usage` adds up tenants that were idle for long; no tenant has it."""

_SMOOTHING = 0.2
"""Weight of the newest call in the running estimate of how long one takes."""
_MIN_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantUsage:
    """What a tenant has in flight, and what it used since the start."""

    num_calls: int = 0
    """In flight."""
    num_bytes: int = 0
    """In flight."""
    num_admitted: int = 0
    num_tokens: int = 0
    """Charged, less those given back."""
    num_refused: Mapping[str, int] = field(default_factory=dict)
    """By reason."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """The books of one tenant."""

    level: float = 0.0
    """Tokens in the bucket; below 0 it is in debt."""
    filled_at: float = 0.0
    seconds_per_call: float = 0.5
    num_calls: int = 0
    num_bytes: int = 0
    num_admitted: int = 0
    num_tokens: int = 0
    num_refused: Counter[str] = field(default_factory=Counter)

    def usage(self) -> TenantUsage:
        return TenantUsage(
            num_calls=self.num_calls,
            num_bytes=self.num_bytes,
            num_admitted=self.num_admitted,
            num_tokens=self.num_tokens,
            num_refused=dict(self.num_refused),
        )


class Quotas:
    """The accounts of all tenants: of those in flight, and of as many others as `max_idle`, those used last."""

    def __init__(
        self, *, burst_seconds: float = 4.0, max_idle: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst_seconds = burst_seconds
        self._max_idle = max_idle
        self._clock = clock
        self._busy: dict[str, _Account] = {}
        self._idle: OrderedDict[str, _Account] = OrderedDict()
        """Those used last stand last."""
        self._forgotten = _Account()

    def usage(self) -> Mapping[str, TenantUsage]:
        """By tenant. Idle tenants beyond the bound stand together as FORGOTTEN."""
        accounts = {**self._idle, **self._busy}
        if self._forgotten.num_admitted or self._forgotten.num_refused:
            accounts[FORGOTTEN] = self._forgotten
        return {name: account.usage() for name, account in accounts.items()}

    @contextmanager
    def call(self, tenant: Tenant, *, num_bytes: int = 0) -> Iterator[None]:
        """Around a call whose message has `num_bytes`. Raises QuotaExceededError where the tenant may not have one more
        now, InvalidRequestError where it may never have one of this size."""
        account = self._take(tenant)
        try:
            self._admit(tenant, account, num_bytes)
        except (QuotaExceededError, InvalidRequestError) as error:
            account.num_refused[error.reason] += 1
            self._give_back(tenant.name, account)
            raise
        account.num_calls += 1
        account.num_bytes += num_bytes
        account.num_admitted += 1
        started = self._clock()
        try:
            yield
        finally:
            account.num_calls -= 1
            account.num_bytes -= num_bytes
            account.seconds_per_call += _SMOOTHING * (self._clock() - started - account.seconds_per_call)
            self._give_back(tenant.name, account)

    def charge(self, tenant: Tenant, num_tokens: int) -> None:
        """Takes a group's tokens, within a `call`, before they are scored. Raises QuotaExceededError where groups of
        other calls have emptied the bucket meanwhile, and then takes none."""
        account = self._busy[tenant.name]
        try:
            self._check_rate(tenant, account)
        except QuotaExceededError as error:
            account.num_refused[error.reason] += 1
            raise
        account.num_tokens += num_tokens
        if tenant.tokens_per_second is not None:
            account.level -= num_tokens

    def refund(self, tenant: Tenant, num_tokens: int) -> None:
        """Gives back what was charged, within the same `call`, for a group that was not scored."""
        account = self._busy[tenant.name]
        account.num_tokens -= num_tokens
        if tenant.tokens_per_second is not None:
            account.level += num_tokens

    def _admit(self, tenant: Tenant, account: _Account, num_bytes: int) -> None:
        max_calls, max_bytes = tenant.max_concurrent, tenant.max_bytes_in_flight
        if max_calls is not None and account.num_calls >= max_calls:
            raise QuotaExceededError(
                f"tenant {tenant.name} has {account.num_calls} calls in flight and may have max_concurrent={max_calls}",
                reason=TOO_MANY_CALLS,
                retry_after_seconds=_seconds_until_one_ends(account),
            )
        if max_bytes is not None and num_bytes > max_bytes:
            raise InvalidRequestError(
                "message",
                f"has {num_bytes} bytes, and tenant {tenant.name} may have max_bytes_in_flight={max_bytes}: send fewer "
                "responses in a group",
                reason=TOO_MANY_BYTES,
            )
        if max_bytes is not None and account.num_bytes + num_bytes > max_bytes:
            raise QuotaExceededError(
                f"tenant {tenant.name} has {account.num_bytes} bytes in flight, and with {num_bytes} more would pass "
                f"max_bytes_in_flight={max_bytes}",
                reason=TOO_MANY_BYTES,
                retry_after_seconds=_seconds_until_one_ends(account),
            )
        self._check_rate(tenant, account)

    def _check_rate(self, tenant: Tenant, account: _Account) -> None:
        rate = tenant.tokens_per_second
        if rate is None:
            return
        now = self._clock()
        account.level = min(rate * self._burst_seconds, account.level + rate * (now - account.filled_at))
        account.filled_at = now
        if account.level <= 0:
            raise QuotaExceededError(
                f"tenant {tenant.name} has used up tokens_per_second={rate:g}",
                reason=RATE_LIMITED,
                retry_after_seconds=-account.level / rate + _MIN_RETRY_SECONDS,
            )

    def _take(self, tenant: Tenant) -> _Account:
        """The tenant's account, among the busy ones."""
        if (account := self._busy.get(tenant.name)) is not None:
            return account
        account = self._idle.pop(tenant.name, None)
        if account is None:
            account = _Account(level=(tenant.tokens_per_second or 0.0) * self._burst_seconds, filled_at=self._clock())
        self._busy[tenant.name] = account
        return account

    def _give_back(self, name: str, account: _Account) -> None:
        if account.num_calls:
            return
        del self._busy[name]
        self._idle[name] = account
        if len(self._idle) > self._max_idle:
            _, oldest = self._idle.popitem(last=False)
            self._forgotten.num_admitted += oldest.num_admitted
            self._forgotten.num_tokens += oldest.num_tokens
            self._forgotten.num_refused.update(oldest.num_refused)


def _seconds_until_one_ends(account: _Account) -> float:
    """Calls in flight end evenly, on average."""
    seconds = account.seconds_per_call / max(account.num_calls, 1)
    return min(max(seconds, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)
