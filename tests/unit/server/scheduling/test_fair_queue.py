from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_server.callers import Caller
from preceptor_server.scheduling.fair_queue import FairQueue

from tests.unit.server.callers import caller_of


@dataclass(eq=False)
class Entry:
    """Of the caller, and the tenant, that its first letter names."""

    name: str
    cost: float = 10
    weight: float = 1.0
    """Of its tenant."""
    caller: Caller = field(init=False)
    order: int = 0

    def __post_init__(self) -> None:
        self.caller = caller_of(self.name[0], tenant_weight=self.weight)


@dataclass(eq=False)
class Of:
    """An entry of any caller."""

    caller: Caller
    cost: float = 10
    order: int = 0


def queue_of(*entries: Entry) -> FairQueue[Entry]:
    queue: FairQueue[Entry] = FairQueue()
    for entry in entries:
        queue.push(entry)
    return queue


def take(queue: FairQueue[Entry], count: int = 1) -> list[str]:
    """Names of the next entries, as many as there are."""
    names: list[str] = []
    while len(names) < count and (entry := queue.first()) is not None:
        queue.take(entry, cost=entry.cost)
        names.append(entry.name)
    return names


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    assert take(queue_of(Entry("a1"), Entry("a2"), Entry("a3")), 9) == ["a1", "a2", "a3"]


def test_two_callers_alternate_although_one_came_first_with_much() -> None:
    queue = queue_of(*(Entry(f"a{i}") for i in range(4)), Entry("b0"), Entry("b1"))
    assert take(queue, 9) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_callers_share_tokens_not_entries() -> None:
    queue = queue_of(Entry("L0", 40), Entry("L1", 40), *(Entry(f"s{i}", 10) for i in range(8)))
    assert take(queue, 10) == ["L0", "s0", "s1", "s2", "s3", "L1", "s4", "s5", "s6", "s7"]


def test_who_asks_for_ten_times_as_much_gets_no_more_while_both_wait() -> None:
    rng = np.random.default_rng(0)
    queue: FairQueue[Entry] = FairQueue()
    for i in range(200):
        queue.push(Entry(f"a{i}", int(rng.integers(1, 100))))
    for i in range(2000):
        queue.push(Entry(f"b{i}", int(rng.integers(1, 10))))
    served = {"a": 0.0, "b": 0.0}
    for _ in range(800):
        entry = queue.first()
        assert entry is not None
        queue.take(entry, cost=entry.cost)
        served[entry.name[0]] += entry.cost
        assert abs(served["a"] - served["b"]) <= 100


def test_late_caller_earns_no_credit_for_its_idleness_but_comes_next() -> None:
    queue = queue_of(*(Entry(f"a{i}") for i in range(6)))
    take(queue, 3)
    for i in range(3):
        queue.push(Entry(f"b{i}"))
    # b starts where a's last entry started: it is one entry ahead, not three.
    assert take(queue, 9) == ["b0", "a3", "b1", "a4", "b2", "a5"]


@pytest.mark.parametrize("weight", [1 / 128, 1.0, 128.0])
def test_caller_that_comes_back_after_running_empty_still_owes_what_it_was_served(weight: float) -> None:
    queue = queue_of(Entry("a0", 100, weight), Entry("b0", weight=weight), Entry("b1", weight=weight))
    assert take(queue, 2) == ["a0", "b0"]
    queue.push(Entry("a1", 100, weight))
    for i in range(2, 12):
        queue.push(Entry(f"b{i}", weight=weight))
    assert take(queue, 10) == [*(f"b{i}" for i in range(1, 10)), "a1"]


def test_debts_are_paid_by_what_could_have_been_served_while_nothing_waited() -> None:
    def order_after(idle_cost: float) -> list[str]:
        queue = queue_of(Entry("a0", 100), Entry("b0", 100))
        take(queue, 2)
        queue.pay_debts(1e9)
        queue.charge(caller_of("a"), 40)  # for what was served before
        queue.pay_debts(idle_cost)
        for entry in (Entry("a1"), *(Entry(f"b{i}") for i in range(1, 6))):
            queue.push(entry)
        return take(queue, 9)

    # 40 behind, a waits for four entries of b; half of that paid, for two; all of it, for none.
    assert order_after(0) == ["b1", "b2", "b3", "b4", "a1", "b5"]
    assert order_after(20) == ["b1", "b2", "a1", "b3", "b4", "b5"]
    assert order_after(40) == ["a1", "b1", "b2", "b3", "b4", "b5"]


def test_debts_are_paid_by_weight() -> None:
    queue: FairQueue[Entry] = FairQueue()
    queue.charge(caller_of("b", tenant_weight=4.0), 100)
    queue.charge(caller_of("c"), 100)
    queue.pay_debts(25 * 5)  # until b's 100 / 4 are paid, c pays 25 too
    for entry in (Entry("b1", 1, weight=4.0), Entry("c1", 1), Entry("d1", 60), Entry("d2", 60), Entry("d3", 60)):
        queue.push(entry)
    # b and d start at 25, d goes on at 85 and at 145, c starts at 100.
    assert take(queue, 9) == ["b1", "d1", "d2", "c1", "d3"]


def test_a_charge_that_is_taken_back_pays_nobody_elses_debts() -> None:
    queue: FairQueue[Entry] = FairQueue()
    queue.charge(caller_of("a"), 50)
    queue.charge(caller_of("b"), 100)
    queue.pay_debts(60)  # 30 of each
    queue.charge(caller_of("a"), -40)  # it owed 10 less than was paid
    queue.pay_debts(20)  # b owes 50
    for entry in (Entry("b1"), *(Entry(f"c{i}") for i in range(7))):
        queue.push(entry)
    assert take(queue, 7) == ["c0", "c1", "c2", "c3", "c4", "b1", "c5"]


@pytest.mark.parametrize("weight", [1 / 128, 1.0, 128.0])
def test_a_stream_of_new_names_does_not_starve_who_was_there_before(weight: float) -> None:
    """Each newcomer starts at virtual time, which must not stand still."""
    queue = queue_of(Entry("a0", 90, weight), Entry("a1", 90, weight))
    take(queue, 1)
    served = []
    for i in range(200):
        entry = Of(caller_of(f"newcomer {i}", tenant_weight=weight), 60)
        queue.push(entry)  # type: ignore[arg-type]  # of another kind than the queue's first
        first = queue.first()
        assert first is not None
        queue.take(first, cost=first.cost)
        served.append(first.caller.name)
    assert "a" in served[:50]


def test_weights_of_tenants_divide_what_is_served() -> None:
    queue = queue_of(
        *(Entry(f"a{i}", weight=1) for i in range(70)),
        *(Entry(f"b{i}", weight=2) for i in range(70)),
        *(Entry(f"c{i}", weight=4) for i in range(70)),
    )
    names = take(queue, 70)
    assert [sum(name[0] == tenant for name in names) for tenant in "abc"] == [10, 20, 40]


def names_of_callers(queue: FairQueue[Of], count: int) -> list[str]:
    names = []
    for _ in range(count):
        entry = queue.first()
        assert entry is not None
        queue.take(entry, cost=entry.cost)
        names.append(entry.caller.name)
    return names


def test_names_divide_their_tenants_share_and_add_nothing_to_it() -> None:
    queue: FairQueue[Of] = FairQueue()
    for _ in range(40):
        for name in ("m1", "m2", "m3"):
            queue.push(Of(caller_of(name, tenant="many")))
        queue.push(Of(caller_of("only", tenant="one")))
    names = names_of_callers(queue, 60)
    assert [names.count(name) for name in ("only", "m1", "m2", "m3")] == [30, 10, 10, 10]


def test_higher_priority_goes_first_within_its_tenant_and_gains_nothing_beside_others() -> None:
    queue: FairQueue[Of] = FairQueue()
    for _ in range(3):
        queue.push(Of(caller_of("slow", tenant="t")))
    for _ in range(3):
        queue.push(Of(caller_of("other", tenant="u")))
    for _ in range(2):
        queue.push(Of(caller_of("fast", tenant="t", priority=1)))
    assert names_of_callers(queue, 8) == ["fast", "other", "fast", "other", "slow", "other", "slow", "slow"]


def test_higher_priority_of_one_caller_overtakes_what_it_sent_before() -> None:
    queue: FairQueue[Of] = FairQueue()
    entries = [Of(caller_of("a", priority=priority)) for priority in (0, 0, 5, 1, 5)]
    for entry in entries:
        queue.push(entry)
    order = []
    while (entry := queue.first()) is not None:  # type: ignore[assignment]  # None ends it
        queue.take(entry, cost=1)
        order.append(entries.index(entry))
    assert order == [2, 4, 3, 0, 1]


def test_an_entry_that_comes_back_has_its_old_place_among_its_callers() -> None:
    first, second = Entry("a1"), Entry("a2")
    queue = queue_of(first, second)
    queue.take(first, cost=10)
    queue.push(first)
    assert take(queue, 9) == ["a1", "a2"]


def test_what_is_set_aside_is_passed_over_and_loses_nothing() -> None:
    a1, a2, b1, b2 = Entry("a1"), Entry("a2"), Entry("b1"), Entry("b2")
    queue = queue_of(a1, a2, b1, b2)
    queue.set_aside(a1)
    assert queue.first() is a2
    queue.set_aside(a2)
    assert (queue.first(), len(queue), a1 in queue) == (b1, 4, True)
    queue.take(b1, cost=10)
    queue.take(b2, cost=10)
    assert queue.first() is None
    queue.restore()
    queue.push(Entry("c1"))
    # b's second entry started at 10, where c starts now; a has been first all the while.
    assert take(queue, 9) == ["a1", "c1", "a2"]


def test_removed_entry_is_never_taken_aside_or_not() -> None:
    first, second, third = Entry("a1"), Entry("a2"), Entry("b1")
    queue = queue_of(first, second, third)
    assert queue.remove(first)
    queue.set_aside(third)
    assert queue.remove(third)
    queue.restore()
    assert (len(queue), take(queue, 9)) == (1, ["a2"])
    assert not queue.remove(first)


def test_removing_what_does_not_wait_changes_nothing() -> None:
    taken, waiting = Entry("a1"), Entry("a2")
    queue = queue_of(taken, waiting)
    queue.take(taken, cost=10)
    assert not queue.remove(taken)
    assert not queue.remove(Entry("a2"))
    assert not queue.remove(Entry("z1"))
    assert (len(queue), take(queue, 9)) == (1, ["a2"])


def test_a_later_charge_counts_as_if_it_had_been_the_cost() -> None:
    queue = queue_of(Entry("a0"), Entry("a1"), *(Entry(f"b{i}") for i in range(4)))
    assert take(queue, 2) == ["a0", "b0"]
    queue.charge(caller_of("a"), 20)
    assert take(queue, 9) == ["b1", "b2", "a1", "b3"]


def test_a_million_names_leave_nothing_behind_beyond_a_bound() -> None:
    queue: FairQueue[Of] = FairQueue()
    for i in range(20_000):
        tenant = f"tenant {i}" if i % 2 else "one"
        entry = Of(caller_of(f"name {i}", tenant=tenant))
        queue.push(entry)
        queue.take(entry, cost=10)
    assert queue.num_remembered <= 1025
    assert queue.num_remembered_callers("one") <= 257
    queue.pay_debts(1e9)
    assert queue.num_remembered == 0


class SlowQueue:
    """The same by its definition: every tag of every flow is kept for ever, and every choice looks at all entries."""

    def __init__(self) -> None:
        self.waiting: list[Of] = []
        self.aside: list[Of] = []
        self.tags: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self.weights: dict[tuple[str, ...], float] = {}
        self.times: defaultdict[str, float] = defaultdict(float)
        """Virtual time, at the root ("") and inside each tenant."""
        self.fluid_times: defaultdict[str, float] = defaultdict(float)
        self.largest: defaultdict[str, float] = defaultdict(float)

    def push(self, entry: Of) -> None:
        tenant, name = entry.caller.tenant.name, entry.caller.name
        if not self.waits((tenant,)):
            self.tags[tenant,] = max(self.tags[tenant,], self.times[""])
        if not self.waits((tenant, name)):
            self.tags[tenant, name] = max(self.tags[tenant, name], self.times[tenant])
        self.weights[tenant,] = entry.caller.tenant.weight
        self.weights[tenant, name] = entry.caller.weight
        self.waiting.append(entry)

    def weights_that_count(self, depth: int, level: str) -> list[float]:
        """Of flows that wait or owe something."""
        return [
            self.weights[flow]
            for flow in self.weights
            if len(flow) == depth and (depth == 1 or flow[0] == level)
            if self.waits(flow) or self.tags[flow] > self.times[level]
        ]

    def waits(self, flow: tuple[str, ...]) -> bool:
        return any(flow_of(entry, len(flow)) == flow for entry in (*self.waiting, *self.aside))

    def next_ones(self) -> list[Of]:
        """Those that may be first; several where tags are equal."""
        possible = self.lowest(self.waiting, 1)
        result = []
        for tenant in {flow_of(entry, 1) for entry in possible}:
            own = [entry for entry in possible if flow_of(entry, 1) == tenant]
            highest: dict[tuple[str, ...], int] = {}
            for entry in own:
                flow = flow_of(entry, 2)
                highest[flow] = max(highest.get(flow, -1), entry.caller.priority)
            own = [entry for entry in own if highest[flow_of(entry, 2)] == max(highest.values())]
            own = [entry for entry in own if entry.caller.priority == max(highest.values())]
            own = self.lowest(own, 2)
            for flow in {flow_of(entry, 2) for entry in own}:
                result.append(min((e for e in own if flow_of(e, 2) == flow), key=lambda entry: entry.order))
        return result

    def lowest(self, entries: list[Of], depth: int) -> list[Of]:
        tags = [self.tags[flow_of(entry, depth)] for entry in entries]
        return [entry for entry, tag in zip(entries, tags, strict=True) if tag <= min(tags) + 1e-6]

    def take(self, entry: Of, cost: float) -> None:
        for depth, level in ((1, ""), (2, entry.caller.tenant.name)):
            flow = flow_of(entry, depth)
            aside = [
                self.tags[flow_of(other, depth)] for other in self.aside if depth == 1 or flow_of(other, 1) == (level,)
            ]
            self.largest[level] = max(cost, 0.99 * self.largest[level])
            weights = self.weights_that_count(depth, level)
            lag = self.largest[level] * len(weights) / sum(weights)
            self.times[level] = max(self.times[level], min([self.tags[flow], *aside]), self.fluid_times[level] - lag)
            weight = sum(self.weights_that_count(depth, level))
            self.fluid_times[level] = max(self.fluid_times[level], self.times[level]) + cost / weight
        for depth in (1, 2):
            self.tags[flow_of(entry, depth)] += cost / self.weights[flow_of(entry, depth)]
        self.waiting.remove(entry)

    def set_aside(self, entry: Of) -> None:
        self.waiting.remove(entry)
        self.aside.append(entry)

    def restore(self) -> None:
        self.waiting += self.aside
        self.aside.clear()


def flow_of(entry: Of, depth: int) -> tuple[str, ...]:
    return (entry.caller.tenant.name, entry.caller.name)[:depth]


CALLERS = [
    caller_of(f"{tenant}{name}", tenant=tenant, tenant_weight=weight, weight=1 + name)
    for tenant, weight in (("x", 1.0), ("y", 2.0), ("z", 0.5))
    for name in range(2)
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["push", "push", "push", "take", "take", "remove", "aside"]),
        st.integers(0, 5),
        st.integers(0, 2),
        st.integers(1, 50),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_it_does_what_the_definition_says_and_every_entry_comes_out_once(
    steps: list[tuple[str, int, int, int]],
) -> None:
    queue: FairQueue[Of] = FairQueue()
    slow = SlowQueue()
    pushed: list[Of] = []
    gone: list[Of] = []

    def check_first() -> Of | None:
        first, expected = queue.first(), slow.next_ones()
        assert (first in expected) if expected else (first is None)
        return first

    def restore() -> None:
        queue.restore()
        slow.restore()

    for action, number, priority, cost in steps:
        first = check_first()
        if action == "push":
            restore()
            base = CALLERS[number]
            caller = caller_of(
                base.name,
                tenant=base.tenant.name,
                tenant_weight=base.tenant.weight,
                weight=base.weight,
                priority=priority,
            )
            entry = Of(caller)
            pushed.append(entry)
            queue.push(entry)
            slow.push(entry)
        elif action == "take" and first is not None:
            queue.take(first, cost=cost)
            slow.take(first, cost)
            gone.append(first)
        elif action == "aside" and first is not None:
            queue.set_aside(first)
            slow.set_aside(first)
        elif action == "remove" and slow.waiting:
            victim = slow.waiting[(number * 7 + cost) % len(slow.waiting)]
            assert queue.remove(victim)
            slow.waiting.remove(victim)
            gone.append(victim)
        assert len(queue) == len(slow.waiting) + len(slow.aside)
    restore()
    while (last := check_first()) is not None:
        queue.take(last, cost=1)
        slow.take(last, 1)
        gone.append(last)
    assert (len(gone), set(gone), len(queue)) == (len(pushed), set(pushed), 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=40), min_size=2, max_size=6), st.data())
def test_flows_that_wait_are_served_alike_within_one_entry_of_each(costs: list[list[int]], data: st.DataObject) -> None:
    """The bound of the paper: while flows i and j wait, what they were served, by weight, differs by no more than the
    largest entry of each, by weight."""
    weights = [data.draw(st.sampled_from([0.5, 1.0, 3.0])) for _ in costs]
    queue: FairQueue[Entry] = FairQueue()
    for i, (flow, weight) in enumerate(zip(costs, weights, strict=True)):
        for cost in flow:
            queue.push(Entry("abcdef"[i], cost, weight=weight))
    served = [0.0] * len(costs)
    left = [len(flow) for flow in costs]
    while all(left):
        entry = queue.first()
        assert entry is not None
        i = "abcdef".index(entry.name)
        queue.take(entry, cost=entry.cost)
        served[i] += entry.cost / weights[i]
        left[i] -= 1
        for one in range(len(costs)):
            for other in range(one):
                bound = max(costs[one]) / weights[one] + max(costs[other]) / weights[other]
                assert abs(served[one] - served[other]) <= bound + 1e-9
