from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.errors import InvalidRequestError, QuotaExceededError
from preceptor_server.tenants.quotas import FORGOTTEN, Quotas, TenantUsage
from preceptor_server.tenants.tenant import Tenant

from tests.unit.server.tenants.clocks import Clock


def spend(quotas: Quotas, tenant: Tenant, num_tokens: int) -> None:
    with quotas.call(tenant):
        quotas.charge(tenant, num_tokens)


def begin(quotas: Quotas, tenant: Tenant, *, num_bytes: int = 0) -> None:
    with quotas.call(tenant, num_bytes=num_bytes):
        pass


def test_a_tenant_without_limits_may_do_anything() -> None:
    quotas, tenant = Quotas(clock=Clock()), Tenant(name="a")
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(quotas.call(tenant, num_bytes=10**9))
            quotas.charge(tenant, 10**9)
        assert quotas.usage()["a"].num_bytes == 1000 * 10**9


def test_no_more_calls_at_once_than_allowed_and_a_place_is_free_again_when_one_ends() -> None:
    clock = Clock()
    quotas, tenant = Quotas(clock=clock), Tenant(name="a", max_concurrent=2)
    with quotas.call(tenant):
        with quotas.call(tenant):
            with pytest.raises(QuotaExceededError, match="2 calls in flight and may have max_concurrent=2") as raised:
                begin(quotas, tenant)
            assert raised.value.reason == "TOO_MANY_CALLS"
            assert raised.value.retry_after_seconds == 0.25  # half a second each to begin with, two at once
        with quotas.call(tenant):
            pass
    assert quotas.usage()["a"] == TenantUsage(num_admitted=3, num_refused={"TOO_MANY_CALLS": 1})


def test_a_call_that_raises_gives_its_place_back() -> None:
    quotas, tenant = Quotas(clock=Clock()), Tenant(name="a", max_concurrent=1, max_bytes_in_flight=10)
    for _ in range(3):
        with pytest.raises(KeyError), quotas.call(tenant, num_bytes=10):
            raise KeyError
    assert (quotas.usage()["a"].num_calls, quotas.usage()["a"].num_bytes) == (0, 0)


def test_when_to_come_back_follows_how_long_calls_take() -> None:
    clock = Clock()
    quotas, tenant = Quotas(clock=clock), Tenant(name="a", max_concurrent=1)
    for _ in range(100):
        with quotas.call(tenant):
            clock.seconds += 8
    with quotas.call(tenant), pytest.raises(QuotaExceededError) as raised:
        begin(quotas, tenant)
    assert raised.value.retry_after_seconds == pytest.approx(8, rel=1e-6)


def test_no_more_bytes_in_flight_than_allowed() -> None:
    quotas, tenant = Quotas(clock=Clock()), Tenant(name="a", max_bytes_in_flight=100)
    with quotas.call(tenant, num_bytes=60):
        with quotas.call(tenant, num_bytes=40):
            pass
        with pytest.raises(QuotaExceededError, match="has 60 bytes in flight, and with 41 more would pass") as raised:
            begin(quotas, tenant, num_bytes=41)
        assert raised.value.reason == "TOO_MANY_BYTES"


def test_a_message_that_could_never_pass_is_refused_for_good() -> None:
    quotas, tenant = Quotas(clock=Clock()), Tenant(name="a", max_bytes_in_flight=100)
    with pytest.raises(InvalidRequestError, match=r"has 101 bytes, .*max_bytes_in_flight=100: send fewer responses"):
        begin(quotas, tenant, num_bytes=101)
    assert quotas.usage()["a"].num_refused == {"TOO_MANY_BYTES": 1}


def test_tokens_per_second_after_a_burst_of_four_seconds() -> None:
    clock = Clock()
    quotas, tenant = Quotas(burst_seconds=4, clock=clock), Tenant(name="a", tokens_per_second=100)
    spend(quotas, tenant, 150)
    spend(quotas, tenant, 150)
    spend(quotas, tenant, 150)  # 50 in debt, since the bucket held 100
    with pytest.raises(QuotaExceededError, match="tenant a has used up tokens_per_second=100") as raised:
        spend(quotas, tenant, 1)
    assert raised.value.reason == "RATE_LIMITED"
    assert raised.value.retry_after_seconds == pytest.approx(0.55)
    clock.seconds += raised.value.retry_after_seconds
    spend(quotas, tenant, 1)
    assert quotas.usage()["a"].num_tokens == 451


def test_a_group_larger_than_the_bucket_is_scored_and_paid_for() -> None:
    clock = Clock()
    quotas, tenant = Quotas(burst_seconds=4, clock=clock), Tenant(name="a", tokens_per_second=100)
    spend(quotas, tenant, 10_000)
    clock.seconds += 95
    with pytest.raises(QuotaExceededError) as raised:
        spend(quotas, tenant, 1)
    assert raised.value.retry_after_seconds == pytest.approx(1.05)


def test_calls_that_entered_together_pass_the_rate_by_one_group_only() -> None:
    quotas, tenant = Quotas(burst_seconds=4, clock=Clock()), Tenant(name="a", tokens_per_second=100)
    num_charged = 0
    with ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(quotas.call(tenant))
        for _ in range(64):
            try:
                quotas.charge(tenant, 300)
                num_charged += 300
            except QuotaExceededError:
                continue
    assert num_charged == 600
    assert quotas.usage()["a"] == TenantUsage(num_admitted=64, num_tokens=600, num_refused={"RATE_LIMITED": 62})


def test_tokens_of_a_group_that_was_not_scored_are_given_back() -> None:
    quotas, tenant = Quotas(burst_seconds=1, clock=Clock()), Tenant(name="a", tokens_per_second=100)
    for _ in range(10):
        with quotas.call(tenant):
            quotas.charge(tenant, 100)
            quotas.refund(tenant, 100)
    assert quotas.usage()["a"].num_tokens == 0
    spend(quotas, tenant, 100)


def test_a_rate_that_is_changed_while_serving_holds_from_the_next_call_on() -> None:
    clock = Clock()
    quotas = Quotas(burst_seconds=4, clock=clock)
    spend(quotas, Tenant(name="a", tokens_per_second=1000), 10)
    spend(quotas, Tenant(name="a", tokens_per_second=1), 4)
    with pytest.raises(QuotaExceededError):
        spend(quotas, Tenant(name="a", tokens_per_second=1), 1)
    spend(quotas, Tenant(name="a"), 10**6)


def test_tenants_do_not_share_a_limit() -> None:
    quotas = Quotas(clock=Clock())
    one, other = Tenant(name="a", max_concurrent=1), Tenant(name="b", max_concurrent=1)
    with quotas.call(one), quotas.call(other):
        pass


def test_many_anonymous_peers_are_remembered_within_bounds_and_none_is_uncounted() -> None:
    quotas = Quotas(max_idle=100, clock=Clock())
    busy = Tenant(name="busy")
    with quotas.call(busy):
        for number in range(10_000):
            spend(quotas, Tenant(name=f"peer:{number}"), 3)
        usage = quotas.usage()
        assert len(usage) == 102
        assert usage["busy"].num_calls == 1
        assert usage[FORGOTTEN] == TenantUsage(num_admitted=9900, num_tokens=29_700)
        assert sum(one.num_tokens for one in usage.values()) == 30_000


@given(st.floats(1, 1e5), st.lists(st.tuples(st.floats(0, 10), st.integers(1, 100_000)), min_size=1, max_size=60))
def test_the_rate_holds_over_any_sequence_of_groups(rate: float, groups: list[tuple[float, int]]) -> None:
    """Charged tokens never pass the burst, what was earned meanwhile, and one group."""
    clock = Clock()
    quotas, tenant = Quotas(burst_seconds=4, clock=clock), Tenant(name="a", tokens_per_second=rate)
    began, charged = clock.seconds, 0
    for pause, num_tokens in groups:
        clock.seconds += pause
        try:
            spend(quotas, tenant, num_tokens)
        except QuotaExceededError as error:
            clock.seconds += error.retry_after_seconds
            spend(quotas, tenant, num_tokens)  # whoever comes back when told is let in
        charged += num_tokens
        earned = rate * (4 + clock.seconds - began)
        assert charged <= (earned + max(size for _, size in groups)) * (1 + 1e-6)
