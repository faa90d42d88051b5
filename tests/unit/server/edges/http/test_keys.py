"""Keys over HTTP: who is refused, what they are told, and whom the server tells of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from preceptor_server import app
from preceptor_server.callers import Caller, Transport
from preceptor_server.edges.http.recorder import Recorder
from preceptor_server.edges.identity import Identity
from preceptor_server.errors import reason_of
from preceptor_server.tenants.command import run
from preceptor_server.tenants.config import AccessConfig
from preceptor_server.tenants.directory import TenantDirectory
from preceptor_server.tenants.tenant import Tenant

from tests.unit.server.edges.http.asking import asking, group, problem


class Refusals:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def refused(self, error: Exception, *, caller: Caller | None, peer: str, method: str, transport: Transport) -> None:
        assert transport == "http"
        self.seen.append((caller.tenant.name if caller else peer, method, reason_of(error)))


class Elsewhere:
    """A directory that knows one tenant, who may use one teacher that is not hosted here."""

    has_keys = True

    def peer_name(self, peer: str) -> str:
        return peer

    def identify(self, key: str | None, *, peer: str) -> Tenant:
        return Tenant(name="elsewhere", teachers=frozenset({"another"}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.toml"


def key_for(file: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert run(["new", "--file", str(file), *arguments]) == 0
    return {"authorization": f"Bearer {capsys.readouterr().out.strip()}"}


async def test_routes_ask_for_a_key_and_its_right_and_refusals_are_told(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = key_for(file, capsys, "--tenant", "scorer", "--rights", "score")
    looker = key_for(file, capsys, "--tenant", "looker", "--rights", "look")
    async with asking(record=5) as asked:
        asked.state.identity = Identity(TenantDirectory(AccessConfig(file=file)))
        refusals = asked.state.refusals = Refusals()
        nobody = await asked.topk(group())
        assert problem(nobody) == (401, "NO_KEY", None)
        assert nobody.headers["www-authenticate"] == "Bearer"
        assert problem(await asked.topk(group(), authorization="Bearer prk_a_b")) == (401, "UNKNOWN_KEY", None)
        assert problem(await asked.topk(group(), **looker)) == (403, "MISSING_RIGHT", None)
        assert (await asked.topk(group(), **scorer)).status_code == 200
        assert problem(await asked.client.get("/v1/requests", headers=scorer)) == (403, "MISSING_RIGHT", None)
        # What another tenant sent is not for this one to see.
        listed = (await asked.client.get("/v1/requests", headers=looker)).json()
        assert (listed["records"], listed["last"]) == ([], 1)
        assert problem(await asked.client.get("/v1/requests/1", headers=looker)) == (404, "NOT_RECORDED", "number")
        for path in ("/", "/healthz", "/readyz"):
            assert (await asked.client.get(path)).status_code == 200
    assert refusals.seen == [
        ("127.0.0.1", "/v1/topk", "NO_KEY"),
        ("127.0.0.1", "/v1/topk", "UNKNOWN_KEY"),
        ("looker", "/v1/topk", "MISSING_RIGHT"),
        ("scorer", "/v1/requests", "MISSING_RIGHT"),
    ]


async def test_of_two_keys_the_first_counts_as_over_grpc(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, wrong = key_for(file, capsys, "--tenant", "a")["authorization"], "Bearer prk_wrong"
    async with asking() as asked:
        asked.state.identity = Identity(TenantDirectory(AccessConfig(file=file)))
        for first, second, status in ((key, wrong, 200), (wrong, key, 401)):
            both = [("authorization", first), ("authorization", second)]
            assert (await asked.client.get("/v1/info", headers=both)).status_code == status


async def test_a_key_that_is_revoked_while_its_caller_waits_shows_nothing(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looker, scorer = key_for(file, capsys, "--tenant", "a"), key_for(file, capsys, "--tenant", "a")
    is_waiting = asyncio.Event()
    wait = Recorder.wait_for_one_after

    async def tell_and_wait(self: Recorder, number: int, *, timeout_seconds: float) -> None:
        is_waiting.set()
        await wait(self, number, timeout_seconds=timeout_seconds)

    monkeypatch.setattr(Recorder, "wait_for_one_after", tell_and_wait)
    async with asking(record=5) as asked:
        directory = TenantDirectory(AccessConfig(file=file))
        asked.state.identity = Identity(directory)
        waiting = asyncio.create_task(asked.client.get("/v1/requests?wait_seconds=20", headers=looker))
        await is_waiting.wait()
        assert run(["revoke", "--file", str(file), looker["authorization"].split("_")[1]]) == 0
        directory.refresh()
        assert (await asked.topk(group(), **scorer)).status_code == 200
        assert problem(await waiting) == (401, "REVOKED_KEY", None)
        [record] = (await asked.client.get("/v1/requests?wait_seconds=20", headers=scorer)).json()["records"]
        assert record["number"] == 1


async def test_callers_are_told_apart_in_the_loop_that_grpcs_are_told_apart_in() -> None:
    """What counts wrong keys and refusals has no lock."""
    threads = []

    class Directory(TenantDirectory):
        def identify(self, key: str | None, *, peer: str) -> Tenant:
            threads.append(threading.get_ident())
            return super().identify(key, peer=peer)

    async with asking() as asked:
        asked.state.identity = Identity(Directory(AccessConfig()))
        assert (await asked.topk(group())).status_code == 200
        assert (await asked.client.get("/v1/info")).status_code == 200
    assert threads == [threading.get_ident()] * 2


@pytest.mark.parametrize("name", ["professor", "nobody", ""])
async def test_a_teacher_that_a_tenant_may_not_use_is_refused_and_told_whether_it_exists_or_not(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with asking() as asked:
        asked.state.identity = Identity(Elsewhere())
        asked.state.refusals = told = app.Refusals(asked.state.observatory.observers())
        for _ in range(3):
            assert problem(await asked.topk(group(teacher=name))) == (403, "TEACHER_NOT_ALLOWED", None)
        text = {"teacher": name, "response": {"text": "a"}}
        assert problem(await asked.client.post("/v1/align", json=text)) == (403, "TEACHER_NOT_ALLOWED", None)
        counted = asked.state.observatory.metrics.render().decode()
    lines = [line for line in caplog.messages if "reason=TEACHER_NOT_ALLOWED" in line]
    assert (told.log.counts, len(lines)) == ({"TEACHER_NOT_ALLOWED": 4}, 1)
    by_path = {'method="/v1/topk"': 3, 'method="/v1/align"': 1}
    for method, count in by_path.items():
        labels = f'transport="http",tenant="elsewhere",{method},reason="TEACHER_NOT_ALLOWED"'
        assert f"preceptor_refusals_total{{{labels}}} {count}" in counted


async def test_refusals_of_every_kind_are_told_with_who_was_refused_and_answers_are_not() -> None:
    async with asking(max_body_bytes=1024, record=5) as asked:
        refusals = asked.state.refusals = Refusals()
        json_type = {"content-type": "application/json"}
        assert (await asked.client.post("/v1/topk", content=b"{", headers=json_type)).status_code == 400
        assert (await asked.client.post("/v1/topk", content=b" " * 2000, headers=json_type)).status_code == 413
        assert (await asked.client.post("/v1/align", content=b"{}")).status_code == 415
        assert (await asked.client.get("/v1/requests?limit=x")).status_code == 400
        assert (await asked.topk(group(teacher="nobody"))).status_code == 404
        outside = await asked.topk(group(responses=[{"ids": [10_000]}]))
        assert outside.status_code == 400
        for path in ("/v1/requests/99", "/v1/nothing", "/static/nothing"):
            assert (await asked.client.get(path)).status_code == 404
    [(tenant, *first), *others] = refusals.seen
    assert first == ["/v1/topk", "MALFORMED_JSON"]
    assert others == [
        (tenant, "/v1/topk", "BODY_TOO_LARGE"),
        (tenant, "/v1/align", "UNSUPPORTED_MEDIA_TYPE"),
        (tenant, "/v1/requests", "INVALID_FIELD"),
        (tenant, "/v1/topk", "UNKNOWN_TEACHER"),
        (tenant, "/v1/topk", "TOKEN_OUT_OF_RANGE"),
    ]
