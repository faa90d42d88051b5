from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from preceptor_server.scheduling.fair_queue import FairQueue


@dataclass(frozen=True, eq=False)
class Entry:
    name: str
    num_tokens: int = 10
    rides_alone: bool = False
    weight: float = 1.0

    @property
    def caller(self) -> str:
        return self.name[0]


def queue_of(*entries: Entry) -> FairQueue[Entry]:
    queue: FairQueue[Entry] = FairQueue()
    for entry in entries:
        queue.push(entry)
    return queue


def names(batch: list[Entry]) -> list[str]:
    return [entry.name for entry in batch]


def drain(queue: FairQueue[Entry], *, max_tokens: int) -> list[list[str]]:
    batches = []
    while len(queue):
        batches.append(names(queue.take(max_tokens)))
    return batches


def test_one_caller_is_served_in_the_order_of_arrival() -> None:
    queue = queue_of(Entry("a1"), Entry("a2"), Entry("a3"))
    assert drain(queue, max_tokens=20) == [["a1", "a2"], ["a3"]]


def test_two_callers_alternate_although_one_came_first_with_much() -> None:
    queue = queue_of(*(Entry(f"a{i}") for i in range(4)), Entry("b0"), Entry("b1"))
    assert drain(queue, max_tokens=10) == [["a0"], ["b0"], ["a1"], ["b1"], ["a2"], ["a3"]]


def test_callers_share_tokens_not_entries() -> None:
    small = [Entry(f"s{i}", 10) for i in range(8)]
    queue = queue_of(Entry("L0", 40), Entry("L1", 40), *small)
    order = [name for batch in drain(queue, max_tokens=1) for name in batch]
    assert order == ["L0", "s0", "s1", "s2", "s3", "L1", "s4", "s5", "s6", "s7"]


def test_who_asks_for_ten_times_as_much_gets_no_more_while_both_wait() -> None:
    rng = np.random.default_rng(0)
    queue: FairQueue[Entry] = FairQueue()
    for i in range(200):
        queue.push(Entry(f"a{i}", int(rng.integers(1, 100))))
    for i in range(2000):
        queue.push(Entry(f"b{i}", int(rng.integers(1, 10))))
    served = {"a": 0, "b": 0}
    for _ in range(50):
        for entry in queue.take(100):
            served[entry.caller] += entry.num_tokens
        assert abs(served["a"] - served["b"]) <= 100


def test_late_caller_earns_no_credit_for_its_idleness() -> None:
    queue = queue_of(*(Entry(f"a{i}") for i in range(6)))
    queue.take(30)
    for i in range(3):
        queue.push(Entry(f"b{i}"))
    assert drain(queue, max_tokens=10) == [["a3"], ["b0"], ["a4"], ["b1"], ["a5"], ["b2"]]


def test_caller_that_comes_back_starts_level_with_the_least_served() -> None:
    queue = queue_of(*(Entry(f"a{i}") for i in range(6)), Entry("b0"))
    assert names(queue.take(40)) == ["a0", "b0", "a1", "a2"]
    queue.push(Entry("b1"))
    queue.push(Entry("b2"))
    assert drain(queue, max_tokens=10) == [["a3"], ["b1"], ["a4"], ["b2"], ["a5"]]


def test_batch_stays_within_the_budget() -> None:
    queue = queue_of(Entry("a1", 30), Entry("a2", 30), Entry("a3", 30))
    assert drain(queue, max_tokens=89) == [["a1", "a2"], ["a3"]]


def test_batch_may_fill_the_budget_to_the_last_token() -> None:
    queue = queue_of(Entry("a1", 30), Entry("a2", 30), Entry("a3", 30))
    assert drain(queue, max_tokens=90) == [["a1", "a2", "a3"]]


def test_entry_larger_than_the_budget_is_a_batch_of_its_own() -> None:
    queue = queue_of(Entry("a1", 500), Entry("a2", 10))
    assert drain(queue, max_tokens=100) == [["a1"], ["a2"]]


def test_large_entry_is_not_overtaken_by_small_ones_that_would_fit() -> None:
    queue = queue_of(Entry("a1", 50), Entry("a2", 90), Entry("a3", 10), Entry("b1", 60))
    assert drain(queue, max_tokens=100) == [["a1"], ["b1"], ["a2", "a3"]]


def test_entry_that_rides_alone_shares_no_batch() -> None:
    queue = queue_of(Entry("a1"), Entry("a2", rides_alone=True), Entry("a3"), Entry("a4"))
    assert drain(queue, max_tokens=100) == [["a1"], ["a2"], ["a3", "a4"]]


def test_entries_that_ride_alone_come_one_by_one() -> None:
    queue = queue_of(Entry("a1", rides_alone=True), Entry("a2", rides_alone=True), Entry("b1"))
    assert drain(queue, max_tokens=100) == [["a1"], ["b1"], ["a2"]]


def test_empty_queue_gives_an_empty_batch() -> None:
    assert queue_of().take(100) == []


def test_removed_entry_is_never_taken() -> None:
    first, second, third = Entry("a1"), Entry("a2"), Entry("b1")
    queue = queue_of(first, second, third)
    queue.remove(first)
    queue.remove(third)
    assert (len(queue), queue.num_tokens) == (1, 10)
    assert drain(queue, max_tokens=100) == [["a2"]]


def test_removing_what_does_not_wait_changes_nothing() -> None:
    taken, waiting = Entry("a1", 7), Entry("a2", 5)
    queue = queue_of(taken, waiting)
    queue.take(7)
    queue.remove(taken)
    queue.remove(Entry("a2", 5))
    queue.remove(Entry("z1"))
    assert (len(queue), queue.num_tokens) == (1, 5)


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_what_waits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queue: FairQueue[Entry] = FairQueue()
    waiting: list[Entry] = []
    for step in range(100):
        match rng.integers(4):
            case 0 | 1:
                entry = Entry(f"{rng.choice(list('abc'))}{step}", int(rng.integers(1, 50)), bool(rng.random() < 0.2))
                queue.push(entry)
                waiting.append(entry)
            case 2 if waiting:
                queue.remove(waiting.pop(rng.integers(len(waiting))))
            case _:
                budget = int(rng.integers(1, 100))
                batch = queue.take(budget)
                assert bool(batch) == bool(waiting)
                assert len(batch) <= 1 or sum(entry.num_tokens for entry in batch) <= budget
                for entry in batch:
                    oldest = next(other for other in waiting if other.caller == entry.caller)
                    assert entry is oldest
                    waiting.remove(entry)
        assert (len(queue), queue.num_tokens) == (len(waiting), sum(entry.num_tokens for entry in waiting))


@pytest.mark.parametrize(("max_tokens", "expected"), [(14, ["a1", "a2", "a3"]), (13, ["a1", "a2"]), (11, ["a1"])])
def test_a_cost_beside_the_entry_before_decides_what_fits(max_tokens: int, expected: list[str]) -> None:
    queue = queue_of(Entry("a1"), Entry("a2"), Entry("a3"))
    batch = queue.take(max_tokens, cost=lambda entry, previous: entry.num_tokens if previous is None else 2)
    assert names(batch) == expected
    assert queue.num_tokens == 30 - 10 * len(expected)


def test_a_caller_is_charged_the_cost_and_not_the_tokens() -> None:
    queue = queue_of(Entry("a1"), Entry("b1"), Entry("a2"), Entry("b2"))
    costs = {"a1": 1, "b1": 5, "a2": 1, "b2": 5}
    # a has paid 1, then 2 with a2, before b's second turn comes.
    assert names(queue.take(100, cost=lambda entry, _: costs[entry.name])) == ["a1", "b1", "a2", "b2"]
    queue = queue_of(Entry("a1"), Entry("b1"), Entry("a2"), Entry("a3"), Entry("b2"))
    costs["a3"] = 1
    assert names(queue.take(100, cost=lambda entry, _: costs[entry.name])) == ["a1", "b1", "a2", "a3", "b2"]


def test_peek_shows_what_take_begins_with_and_takes_nothing() -> None:
    queue = queue_of(*(Entry(f"a{i}") for i in range(3)), Entry("b0"))
    seen = []
    while (entry := queue.peek()) is not None:
        assert queue.peek() is entry
        assert names(queue.take(0)) == [entry.name]
        seen.append(entry.name)
    assert seen == ["a0", "b0", "a1", "a2"]
    assert queue.num_tokens == 0


def test_low_weight_waits_until_so_many_times_its_tokens_of_others_were_served() -> None:
    queue = queue_of(Entry("h0", weight=0.25), *(Entry(f"a{i}") for i in range(6)))
    # 1/0.25 - 1 = 3 times its 10 tokens; then it is level with whoever was served least, and came first.
    assert drain(queue, max_tokens=10) == [["a0"], ["a1"], ["a2"], ["h0"], ["a3"], ["a4"], ["a5"]]


def test_low_weight_waits_too_where_each_of_the_others_asks_for_one_thing_at_a_time() -> None:
    queue = queue_of(Entry("h0", weight=0.25))
    served = []
    for name in ("a0", "b0", "c0", "a1", "b1"):
        queue.push(Entry(name))
        served += names(queue.take(10))
    assert served == ["a0", "b0", "c0", "h0", "a1"]


def test_low_weight_is_no_bar_where_nobody_else_waits() -> None:
    queue = queue_of(Entry("h0", weight=0.01), Entry("h1", weight=0.01))
    assert drain(queue, max_tokens=10) == [["h0"], ["h1"]]


def test_each_entry_of_low_weight_waits_for_itself() -> None:
    queue = queue_of(Entry("h0", weight=0.5), Entry("h1", weight=0.5), *(Entry(f"a{i}") for i in range(4)))
    order = [name for batch in drain(queue, max_tokens=10) for name in batch]
    assert order == ["a0", "h0", "a1", "h1", "a2", "a3"]


def test_an_entry_does_not_inherit_how_long_a_cancelled_one_waited() -> None:
    given_up, following = Entry("d1", weight=0.5), Entry("d2", weight=0.5)
    queue = queue_of(given_up, following, Entry("a1"), Entry("a2"), Entry("a3"))
    assert names(queue.take(10)) == ["a1"]
    queue.remove(given_up)
    assert drain(queue, max_tokens=10) == [["a2"], ["d2"], ["a3"]]
