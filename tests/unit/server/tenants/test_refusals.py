from __future__ import annotations

import logging

import pytest
from preceptor_server.tenants.refusals import RefusalLog

from tests.unit.server.tenants.clocks import Clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="preceptor_server.tenants.refusals")
    return caplog


def test_a_loop_of_refusals_is_one_line_a_minute_with_the_number_of_the_others(log: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refusals = RefusalLog(clock=clock)
    for _ in range(300):  # two a second for two minutes and a half
        refusals.note(peer="10.0.0.7", reason="UNKNOWN_KEY", detail="the key is not known here")
        clock.seconds += 0.5
    assert log.messages == [
        "refused peer=10.0.0.7 reason=UNKNOWN_KEY detail='the key is not known here'",
        "refused peer=10.0.0.7 reason=UNKNOWN_KEY more=119 seconds=60",
        "refused peer=10.0.0.7 reason=UNKNOWN_KEY more=120 seconds=60",
    ]
    assert refusals.counts == {"UNKNOWN_KEY": 300}


def test_every_refusal_is_in_exactly_one_line(log: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refusals = RefusalLog(clock=clock, max_lines=5)
    for number in range(1000):
        refusals.note(peer=f"p{number % 17}", reason="NO_KEY", detail="")
        clock.seconds += 0.7
    clock.seconds += 61
    refusals.sweep()
    clock.seconds += 61
    refusals.sweep()
    counted = 0
    for message in log.messages:
        fields = dict(part.split("=") for part in message.split() if "=" in part)
        counted += int(fields.get("more", fields.get("others", "1")))
    assert counted == 1000


def test_peers_and_reasons_have_lines_of_their_own(log: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(clock=Clock())
    for peer in ("a", "b"):
        for reason in ("NO_KEY", "EXPIRED_KEY"):
            refusals.note(peer=peer, reason=reason, detail="x")
            refusals.note(peer=peer, reason=reason, detail="x")
    assert len(log.messages) == 4
    assert refusals.counts == {"NO_KEY": 4, "EXPIRED_KEY": 4}


def test_a_flood_of_peers_is_as_many_lines_a_minute_as_were_allowed(log: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refusals = RefusalLog(clock=clock, max_lines=60)
    for number in range(100_000):
        refusals.note(peer=f"p{number}", reason="NO_KEY", detail="x")
    assert len(log.messages) == 60
    clock.seconds += 60
    refusals.sweep()
    assert log.messages[60:] == ["refused others=99940 seconds=60"]
    assert len(refusals._told) == 0


def test_peers_that_go_on_have_no_more_lines_a_minute_than_were_allowed(log: pytest.LogCaptureFixture) -> None:
    """Each minute other peers join, and all who came before go on: what is told of them again counts too."""
    clock = Clock()
    refusals = RefusalLog(clock=clock, max_lines=60)
    for minute in range(10):
        before = len(log.messages)
        for _ in range(2):
            for number in range(60 * (minute + 1)):
                refusals.note(peer=f"p{number}", reason="NO_KEY", detail="x")
        assert len(log.messages) - before <= 61  # one of them is of all others
        clock.seconds += 60


def test_memory_is_bounded_by_kinds(log: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(clock=Clock(), max_lines=1_000_000, max_kinds=100)
    for number in range(1000):
        refusals.note(peer=f"p{number}", reason="NO_KEY", detail="x")
    assert len(refusals._told) == len(log.messages) == 100


def test_a_detail_writes_no_line_of_its_own_and_is_cut(log: pytest.LogCaptureFixture) -> None:
    RefusalLog(clock=Clock()).note(peer="a", reason="NO_KEY", detail="x\nrefused peer=b" + "y" * 1000)
    [message] = log.messages
    assert "\n" not in message
    assert len(message) < 300


def test_after_a_quiet_minute_the_next_refusal_is_told_at_once(log: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    refusals = RefusalLog(clock=clock)
    refusals.note(peer="a", reason="NO_KEY", detail="x")
    clock.seconds += 60
    refusals.note(peer="a", reason="NO_KEY", detail="x")
    assert log.messages == ["refused peer=a reason=NO_KEY detail='x'"] * 2
