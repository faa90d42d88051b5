from __future__ import annotations

from preceptor_server.observability.observer import OK, Refusal, Transport
from preceptor_server.observability.traffic import Traffic

from tests.unit.server.observability.events import caller, outcome


class World:
    def __init__(self) -> None:
        self.now = 50.0
        self.traffic = Traffic(clock=lambda: self.now)

    def group(self, num_positions: int, *, transport: Transport = "grpc", reason: str = OK) -> None:
        self.traffic.began(caller(transport=transport))
        answered = num_positions if reason == OK else 0
        self.traffic.ended(outcome(transport=transport, reason=reason, num_positions=answered))


def test_everything_is_counted_of_both_transports() -> None:
    world = World()
    world.group(10)
    world.group(5, transport="http")
    world.group(7, reason="QUEUE_FULL")
    world.traffic.refused(Refusal(tenant="", transport="grpc", method="Score", reason="NO_KEY"))
    counted = world.traffic
    assert (counted.num_requests, counted.num_failed, counted.num_positions, counted.num_refused) == (3, 1, 15, 1)


def test_throughput_is_that_of_the_last_ten_seconds() -> None:
    world = World()
    for _ in range(30):
        world.now += 1.0
        world.group(40)
        world.group(60)
    assert world.traffic.positions_per_second == 100.0
    world.now += 5.0
    assert world.traffic.positions_per_second == 50.0
    world.now += 10.0
    assert world.traffic.positions_per_second == 0.0


def test_a_young_server_divides_by_its_age() -> None:
    world = World()
    world.now += 2.0
    world.group(100)
    assert world.traffic.positions_per_second == 50.0
    assert world.traffic.uptime_seconds == 2.0


def test_a_transport_is_at_work_while_it_waits_and_shortly_after() -> None:
    world = World()
    assert not world.traffic.is_at_work("grpc")
    world.traffic.began(caller())
    world.now += 1000.0
    assert world.traffic.is_at_work("grpc")
    assert not world.traffic.is_at_work("http")
    world.group(1, transport="http")
    world.now += 1.9
    assert world.traffic.is_at_work("http")
    world.now += 0.2
    assert not world.traffic.is_at_work("http")
