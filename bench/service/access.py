"""Who is let in, and what those who are not cost: keys, rights, TLS, sizes, slow connections, on both ports."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.service.certificates import Issued, issue
from bench.service.engines import Fake
from bench.service.keys import NO_KEYS, Key, has_keys, write_access
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import LogWatch, Server
from bench.service.slow_loris import GRPC, HTTP, SlowLoris
from bench.workers import Worker

TEACHER = Fake(seconds_per_token=0.0)
REPEATS = 50
REVOKED_WITHIN_SECONDS = 5.0
MAX_LINES = 3
"""Of a fault that is repeated: told once, and perhaps how often."""
OVERSIZE = 70 << 20
HTTP_OVERSIZE = 9 << 20
NUM_SLOW, SLOW_SECONDS = 200, 40.0
TENANTS: dict[str, dict[str, object]] = {
    "good": {"rights": ["score", "register", "look"]},
    "elsewhere": {"teachers": ["another"]},
    "looks": {"rights": ["look"]},
}
REFUSED_GRPC = ("UNAUTHENTICATED", "RESOURCE_EXHAUSTED")
"""The latter after many wrong keys from one address."""


@dataclass(slots=True, kw_only=True)
class Gate:
    """A server with keys and TLS, and who asks it."""

    server: Server
    client: Worker
    issued: Issued
    stranger: Issued
    """Of an authority that the server does not have."""
    keys: Mapping[str, Key]
    revoke: Callable[[], None]
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  # Any: JSON

    @property
    def address(self) -> str:
        return f"localhost:{self.server.address.rpartition(':')[2]}"

    @property
    def url(self) -> str:
        return self.server.http_url.replace("http://127.0.0.1", "https://localhost")

    def grpc(self, key: str, **fields: str | int) -> dict[str, Any]:  # Any: JSON
        return self.client.ask_for_fields(**{"address": self.address, "ca": str(self.issued.ca), "key": key, **fields})

    def http(self, key: str, *, body: bytes = b"", ca: Issued | None = None, url: str = "") -> str:
        """The status, or the name of the error."""
        context = ssl.create_default_context(cafile=str((ca or self.issued).ca))
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(f"{url or self.url}/v1/topk", data=body or _body(), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return str(answer.status)
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return type(getattr(error, "reason", error)).__name__

    def note(self, what: str, codes: object, *, is_met: bool, wanted: str) -> None:
        self.figures.append(Figure(what=what, value=str(codes), wanted=wanted, is_met=is_met))


def _body() -> bytes:
    prompt, responses = {"teacher_ids": [1, 2, 3]}, [{"ids": [1, 2, 3]}]
    return json.dumps({"prompt": prompt, "responses": responses, "top_k": 4}).encode()


def run(room: Room) -> Result:
    if not has_keys(room.tree):
        return Result(scenario=SCENARIO.name, skipped=NO_KEYS)
    with _gate(room) as gate:
        _right_key(gate)
        _rights(gate)  # before the wrong keys: an address that showed many of those may be kept waiting
        _keys(room, gate)
        _tls(gate)
        _sizes(gate)
        _slow(room, gate)
        _revoked_in_use(gate)
        _leaks(gate)
    return Result(scenario=SCENARIO.name, figures=tuple(gate.figures), details=gate.details)


@contextmanager
def _gate(room: Room) -> Iterator[Gate]:
    issued, stranger = issue(room.folder / "tls", "teacher"), issue(room.folder / "tls", "stranger")
    keys = {name: Key(tenant=name) for name in TENANTS}
    keys["expired"] = Key(tenant="good", expires="2020-01-01")
    keys["used"] = Key(tenant="good")
    path = write_access(room.folder / "access.toml", list(keys.values()), tenants=TENANTS)
    arguments = ("--access.file", str(path), "--tls.certificate", str(issued.certificate), "--tls.key", str(issued.key))

    def revoke() -> None:
        used = keys["used"]
        revoked = Key(tenant="good", id=used.id, secret=used.secret, is_revoked=True)
        write_access(path, [*(one for one in keys.values() if one is not used), revoked], tenants=TENANTS)

    with (
        room.server(TEACHER, *arguments, with_http=True) as server,
        Worker("bench.service.access_client", paths=room.tree.paths) as client,
    ):
        yield Gate(server=server, client=client, issued=issued, stranger=stranger, keys=keys, revoke=revoke)


def _right_key(gate: Gate) -> None:
    codes, status = gate.grpc(gate.keys["good"].text)["codes"], gate.http(gate.keys["good"].text)
    gate.note("a right key, gRPC", codes, is_met=codes == {"OK": 1}, wanted="OK")
    gate.note("a right key, HTTP", status, is_met=status == "200", wanted="200")


def _keys(room: Room, gate: Gate) -> None:
    good = gate.keys["good"]
    wrong = {
        "no key": "",
        "a wrong secret": Key(tenant="good", id=good.id).text,
        "an unknown key": Key(tenant="nobody").text,
        "an expired key": gate.keys["expired"].text,
        "no key's form": "Basic nonsense",
    }
    repeats = room.count(REPEATS)
    for what, key in wrong.items():
        with LogWatch(gate.server) as log:
            fields = gate.grpc(key, count=repeats)
            statuses = [gate.http(key) for _ in range(3)]
            time.sleep(1.0)
        codes = fields["codes"]
        gate.details[what] = {**fields, "http": statuses, "lines": log.num_lines}
        gate.note(f"{what}, gRPC", codes, is_met=set(codes) <= set(REFUSED_GRPC), wanted=" or ".join(REFUSED_GRPC))
        gate.note(f"{what}, HTTP", statuses, is_met=set(statuses) <= {"401", "429"}, wanted="401 or 429")
        told = f"{what}: lines of log for {repeats + 3}"
        gate.note(told, log.num_lines, is_met=log.num_lines <= 2 * MAX_LINES, wanted=f"<= {2 * MAX_LINES}")
    after = gate.grpc(good.text)["codes"]
    gate.note("the right key after those", after, is_met=after == {"OK": 1}, wanted="OK")


def _rights(gate: Gate) -> None:
    asked: dict[str, tuple[str, dict[str, str | int]]] = {
        "another tenant's teacher": ("elsewhere", {}),
        "a right that is missing (score)": ("looks", {}),
        "a right that is missing (update_weights)": ("good", {"method": "UpdateWeights"}),
    }
    for what, (name, fields) in asked.items():
        codes = gate.grpc(gate.keys[name].text, **fields)["codes"]
        gate.note(f"{what}, gRPC", codes, is_met=codes == {"PERMISSION_DENIED": 1}, wanted="PERMISSION_DENIED")
    for name in ("elsewhere", "looks"):
        status = gate.http(gate.keys[name].text)
        gate.note(f"tenant {name}, HTTP", status, is_met=status == "403", wanted="403")


def _tls(gate: Gate) -> None:
    key = gate.keys["good"].text
    for what, ca in (("plaintext to TLS", ""), ("a wrong authority", str(gate.stranger.ca))):
        codes = gate.grpc(key, ca=ca)["codes"]
        gate.note(f"{what}, gRPC", codes, is_met=codes == {"UNAVAILABLE": 1}, wanted="UNAVAILABLE")
    status = gate.http(key, ca=gate.stranger)
    gate.note("a wrong authority, HTTP", status, is_met=status == "SSLCertVerificationError", wanted="no connection")
    status = gate.http(key, url=gate.server.http_url)
    gate.note("plaintext to TLS, HTTP", status, is_met=not status.startswith("2"), wanted="no answer")


def _sizes(gate: Gate) -> None:
    key = gate.keys["good"].text
    codes = gate.grpc(key, num_bytes=OVERSIZE)["codes"]
    gate.note("oversize, gRPC", codes, is_met=codes == {"RESOURCE_EXHAUSTED": 1}, wanted="RESOURCE_EXHAUSTED")
    status = gate.http(key, body=b" " * HTTP_OVERSIZE)
    # A server may answer before it has read all, and then end the connection under the sender.
    is_met = status in ("413", "BrokenPipeError", "ConnectionResetError", "SSLEOFError")
    gate.note("oversize, HTTP", status, is_met=is_met, wanted="413")


def _slow(room: Room, gate: Gate) -> None:
    """Good calls go on while many connections dawdle, before and after the TLS handshake."""
    count, seconds = room.count(NUM_SLOW), min(SLOW_SECONDS, room.minutes * 60)
    http_address = gate.server.http_url.removeprefix("http://")
    for what, address, opening in (("gRPC", gate.server.address, GRPC), ("HTTP", http_address, HTTP)):
        for tls in (False, True):
            with LogWatch(gate.server) as log, SlowLoris(address, opening, count=count, tls=tls) as slow:
                time.sleep(seconds)
                codes = gate.grpc(gate.keys["good"].text, count=20)["codes"]
                status = gate.http(gate.keys["good"].text)
            name = f"{count} slow connections, {what}{' in TLS' if tls else ''}"
            gate.details[name] = {"opened": slow.num_opened, "ended_by_server": slow.num_ended, "lines": log.num_lines}
            is_met = codes == {"OK": 20} and status == "200"
            gate.note(f"{name}: good calls", f"{codes}, {status}", is_met=is_met, wanted="OK: 20, 200")
            ended = f"{slow.num_ended} of {count}"
            gate.note(
                f"{name}: ended by the server in {seconds:.0f} s", ended, is_met=slow.num_ended == count, wanted="all"
            )


def _revoked_in_use(gate: Gate) -> None:
    key = gate.keys["used"].text
    before = gate.grpc(key)["codes"]
    gate.revoke()
    started = time.monotonic()
    while "OK" in (codes := gate.grpc(key)["codes"]) and time.monotonic() < started + 10 * REVOKED_WITHIN_SECONDS:
        time.sleep(0.1)
    seconds = time.monotonic() - started
    is_met = before == {"OK": 1} and set(codes) <= set(REFUSED_GRPC) and seconds <= REVOKED_WITHIN_SECONDS
    told = f"{before}, then {codes} after {seconds:.1f} s"
    gate.note("revoked in use, same connection", told, is_met=is_met, wanted=f"within {REVOKED_WITHIN_SECONDS:g} s")


def _leaks(gate: Gate) -> None:
    log = gate.server.log.read_text(errors="replace")
    found = [name for name, key in gate.keys.items() if key.secret in log]
    gate.note("secrets in the log", found or "none", is_met=not found, wanted="none")


SCENARIO = Scenario(name="access", about="keys, rights, TLS, sizes and slow connections, on both ports", run=run)
