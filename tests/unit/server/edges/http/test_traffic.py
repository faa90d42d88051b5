from __future__ import annotations

import numpy as np
from preceptor_server.callers import Caller, Transport
from preceptor_server.calls import ScoreCall, TeacherIds
from preceptor_server.edges.http.traffic import Traffic
from preceptor_server.serving import NO_NOTES, OK, Outcome
from preceptor_server.tenants.tenant import Tenant

from tests.unit.server.scored_calls import columns_of, scored_call

TENANT = Tenant(name="a")


class World:
    def __init__(self) -> None:
        self.now = 50.0
        self.traffic = Traffic(clock=lambda: self.now)

    def group(self, num_positions: int, *, transport: Transport = "grpc", reason: str = OK) -> None:
        caller = Caller(tenant=TENANT, name="a", transport=transport)
        self.traffic.began(caller)
        call = ScoreCall(prompt=TeacherIds(ids_P=np.array([1])), responses=(), top_k=1, temperature=1.0)
        self.traffic.ended(
            Outcome(
                caller=caller,
                teacher="",
                call=call,
                scored=scored_call(columns_of([-1.0] * num_positions)) if reason == OK else None,
                notes=NO_NOTES,
                reason=reason,
                total_seconds=0.0,
            )
        )


def test_everything_is_counted_of_both_transports() -> None:
    world = World()
    world.group(10)
    world.group(5, transport="http")
    world.group(7, reason="QUEUE_FULL")
    counted = world.traffic
    assert (counted.num_requests, counted.num_failed, counted.num_positions) == (3, 1, 15)


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
    world.traffic.began(Caller(tenant=TENANT, name="a", transport="grpc"))
    world.now += 1000.0
    assert world.traffic.is_at_work("grpc")
    assert not world.traffic.is_at_work("http")
    world.group(1, transport="http")
    world.now += 1.9
    assert world.traffic.is_at_work("http")
    world.now += 0.2
    assert not world.traffic.is_at_work("http")
