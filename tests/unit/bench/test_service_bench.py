"""What of the service bench needs no server: ledger, shares, malformed messages, proxy, going on where it was cut."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from preceptor.v1 import teacher_pb2 as pb

from bench.service.__main__ import main, parser
from bench.service.engines import Fake, command_of
from bench.service.keys import Key, write_access
from bench.service.ledger import Balance, LedgerWriter, balance
from bench.service.loads import OK, Load, Report, Sample, Shape, pack, unpack
from bench.service.mutations import SERVICE, Field, Mutator, split, valid_messages, varint
from bench.service.proxy import Proxy
from bench.service.results import Figure, Result, table
from bench.service.room import Room
from bench.service.scenarios import SCENARIOS
from bench.service.shares import jain, worst_deviation
from bench.service.slow_loris import SlowLoris
from bench.service.trees import this_tree


def ledger(folder: Path, *events: tuple[Any, str]) -> Path:
    path = folder / "ledger.jsonl"
    writer = LedgerWriter(str(path))
    for event, request_id in events:
        writer.note(event, request_id)
    writer.close()
    return path


def test_a_ledger_in_which_all_was_used_once_balances_to_zero(tmp_path: Path) -> None:
    path = ledger(tmp_path, *((event, one) for one in "ab" for event in ("sent", "scored", "used")))
    kept = balance([path])
    assert kept.is_zero
    assert (kept.num_sent, kept.num_scored, kept.num_used) == (2, 2, 2)


def test_a_ledger_tells_what_was_lost_counted_twice_and_never_sent(tmp_path: Path) -> None:
    path = ledger(
        tmp_path,
        *(("sent", "lost"), ("sent", "scored only"), ("scored", "scored only")),
        *(("sent", "twice"), ("scored", "twice"), ("used", "twice"), ("used", "twice")),
        *(("scored", "never sent"), ("used", "never sent")),
    )
    with path.open("a") as cut_short:
        cut_short.write('["sent", "hal')
    assert balance([path]) == Balance(num_sent=3, num_scored=3, num_used=2, num_lost=2, num_twice=1, num_unknown=1)


@pytest.mark.parametrize(
    ("amounts", "index"), [([5, 5, 5], 1.0), ([1, 0, 0, 0], 0.25), ([3, 1], 16 / 20), ([93, 7], 10_000 / 17_396)]
)
def test_jains_index(amounts: list[float], index: float) -> None:
    assert jain(amounts) == pytest.approx(index)


def test_jains_index_of_nothing_is_no_number() -> None:
    assert math.isnan(jain([0, 0]))


def test_a_share_deviates_from_its_weight_by_as_much_as_it_is_more_or_less() -> None:
    assert worst_deviation([10, 20, 40], [1, 2, 4]) == pytest.approx(0.0)
    # 20 of 70 where a seventh was promised: twice as much.
    assert worst_deviation([20, 10, 40], [1, 2, 4]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\x00"), (127, b"\x7f"), (300, b"\xac\x02"), (2**64 - 1, b"\xff" * 9 + b"\x01")]
)
def test_varints(value: int, encoded: bytes) -> None:
    assert varint(value) == encoded


def test_a_message_is_its_fields_again() -> None:
    for method, message in valid_messages():
        assert b"".join(field.encode() for field in split(message)) == message, method


def test_most_scores_that_are_messages_after_all_have_an_id_outside_every_vocabulary() -> None:
    mutator, num_messages, num_outside = Mutator(seed=5), 0, 0
    for _ in range(3000):
        method, way, message = mutator.next()
        if method != f"{SERVICE}Score" or way in ("raw_bytes", "truncated"):
            continue
        try:
            request = pb.ScoreRequest.FromString(message)
        except DecodeError:
            continue
        num_messages += 1
        num_outside += bool(request.responses) and request.responses[-1].ids.data == b"\xff\xff"
    assert num_messages > 500
    assert 0.85 < num_outside / num_messages < 0.95


def test_fields_are_what_protobuf_wrote() -> None:
    fields = split(pb.ScoreRequest(request_id="id", top_k=300, temperature=1.0).SerializeToString())
    assert fields == [
        Field(number=1, wire_type=2, payload=b"id"),
        Field(number=7, wire_type=0, payload=b"\xac\x02"),
        Field(number=8, wire_type=1, payload=b"\0" * 6 + b"\xf0\x3f"),
    ]


@pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x80", b"\x0b", b"\x00\x00", b"\x09\x01"])
def test_what_is_no_message_is_not_split(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"wire type|too early|without an end"):
        split(message)


def test_a_mutator_makes_every_kind_of_malformed_message_and_the_same_ones_for_a_seed() -> None:
    mutators = Mutator(1), Mutator(1), Mutator(2)
    one, again, other = ([mutator.next() for _ in range(3000)] for mutator in mutators)
    assert one == again != other
    assert len({way for _, way, _ in one}) == 12
    refused_ways = {way for method, way, message in one if method == f"{SERVICE}Score" and not _parses(message)}
    assert {
        "raw_bytes",
        "truncated",
        "flipped",
        "long_length",
        "wrong_wire_type",
        "unknown_group",
        "bad_text",
    } <= refused_ways
    assert any(method == f"{SERVICE}Score" and _parses(message) for method, _, message in one)


def _parses(message: bytes) -> bool:
    try:
        pb.ScoreRequest.FromString(message)
    except DecodeError:
        return False
    return True


@contextmanager
def echo(peers: list[str]) -> Iterator[str]:
    """A server that sends back what it is sent, and notes who came."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1000):
                    connection.sendall(data)
            except OSError:
                pass  # cut

    def accept() -> None:
        while True:
            try:
                connection, (host, _) = listener.accept()
            except OSError:
                return  # closed
            peers.append(host)
            Thread(target=answer, args=(connection,), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def connected(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_a_proxy_hands_on_from_an_address_of_its_own() -> None:
    peers: list[str] = []
    with echo(peers) as target, Proxy(target, source="127.0.0.77") as proxy, connected(proxy.address) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        assert peers == ["127.0.0.77"]
        assert proxy.num_connections == 1


def test_a_cut_connection_is_reset_and_a_new_one_works() -> None:
    with echo([]) as target, Proxy(target) as proxy:
        with connected(proxy.address) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
            assert proxy.cut() == 2  # its two ends
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        with connected(proxy.address) as client:
            client.sendall(b"again")
            assert client.recv(100) == b"again"


def test_a_black_hole_swallows_nothing_for_good() -> None:
    with echo([]) as target, Proxy(target) as proxy, connected(proxy.address) as client:
        proxy.swallow(is_on=True)
        client.sendall(b"hello")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.swallow(is_on=False)
        client.settimeout(30)
        assert client.recv(100) == b"hello"


def test_a_proxy_whose_server_is_away_is_away_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = f"127.0.0.1:{gone.getsockname()[1]}"
    with Proxy(target) as proxy, connected(proxy.address) as client, pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_slow_connection_that_the_server_ends_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with SlowLoris(address, b"GET /", count=2) as slow:
            for _ in range(2):
                connection, _ = listener.accept()
                assert connection.recv(1) == b"G"
                connection.close()
            while slow.num_ended < 2:
                time.sleep(0.01)
    assert (slow.num_opened, slow.num_ended) == (2, 2)


def test_an_access_file_holds_hashes_and_no_secrets(tmp_path: Path) -> None:
    keys = [Key(tenant="a", expires="2020-01-01"), Key(tenant="b.c", is_revoked=True)]
    path = write_access(tmp_path / "access.toml", keys, tenants={"a": {"weight": 2.0}, "b.c": {"rights": ["look"]}})
    read = tomllib.loads(path.read_text())
    assert read["tenants"] == {"a": {"weight": 2.0}, "b.c": {"rights": ["look"]}}
    assert [one["sha256"] for one in read["keys"]] == [
        hashlib.sha256(key.text.split("_", 2)[2].encode()).hexdigest() for key in keys
    ]
    assert [one.get("revoked", False) for one in read["keys"]] == [False, True]
    assert not any(key.secret in path.read_text() for key in keys)
    assert keys[0].secret not in repr(keys[0])


def test_a_load_and_a_report_are_the_same_on_the_other_side() -> None:
    load = Load(address="a:1", kind="open", shape=Shape(prompt=3, num_responses=2, response=5), per_second=2.5)
    assert unpack(pack(load)) == load
    assert load.shape.num_tokens == 13
    sample = Sample(began=1.0, ended=3.5, num_tokens=13, forward_seconds=0.5)
    report = Report(
        outcomes={OK: 1, "late": 2},
        messages={"late": "x"},
        samples=(sample,),
        revisions={"r": 1},
        num_retries=0,
        resident_mib=1,
    )
    assert Report.from_json(report.to_json()) == report
    assert (report.num_ok, report.num_failed) == (1, 2)
    assert report.latencies() == [2.5]
    assert (report.tokens_between(3.0, 3.5), report.tokens_between(3.0, 4.0)) == (0, 13)


def result(name: str, *, is_met: bool | None) -> Result:
    figure = Figure(what="lost", value=7, unit="groups", old="702", wanted="0", is_met=is_met)
    return Result(scenario=name, figures=(figure,), details={"a": [1]})


def test_a_saved_result_is_the_same_when_loaded(tmp_path: Path) -> None:
    result("flood", is_met=False).save(tmp_path)
    assert Result.load(tmp_path / "flood.json") == result("flood", is_met=False)


def test_the_table_has_the_old_figure_beside_the_new_one() -> None:
    text = table([result("flood", is_met=False), Result(scenario="access", skipped="no keys yet")])
    assert "| flood | lost | 702 | 7 groups | 0 | **no** |" in text
    assert "| access | skipped: no keys yet |" in text


def test_a_run_that_was_cut_short_measures_only_what_is_missing(tmp_path: Path) -> None:
    room = Room(folder=tmp_path, tree=this_tree())
    measured: list[str] = []

    def measure() -> dict[str, Any]:
        measured.append("once")
        return {"seconds": 1.5}

    assert [room.part("60 MB / text", measure) for _ in range(2)] == [{"seconds": 1.5}] * 2
    assert measured == ["once"]


def test_scenarios_with_a_result_are_shown_and_not_run_and_one_that_is_unmet_fails_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.service.__main__.tree_of", lambda commit, folder: this_tree())
    for is_met, status in ((True, 0), (None, 0), (False, 1)):
        result("flood", is_met=is_met).save(tmp_path)
        assert main(["flood", "--out", str(tmp_path)]) == status
        assert "7 groups" in capsys.readouterr().out


def test_help_names_every_scenario() -> None:
    text = parser().format_help()
    assert all(f"  {name} " in text for name in SCENARIOS)


def test_an_unknown_scenario_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="unknown scenario 'floood': choose from flood"):
        main(["floood", "--out", str(tmp_path)])


def test_a_fakes_full_batch_takes_what_its_tokens_take() -> None:
    teacher = Fake(seconds_per_token=0.5)
    assert teacher.batch_seconds == 2048
    [options] = [word for word in command_of(teacher, this_tree()) if word.startswith("--engine.options=")]
    assert json.loads(options.removeprefix("--engine.options="))["seconds_per_token"] == 0.5
