from __future__ import annotations

import httpx
import pytest
from preceptor_server.edges.http.guard import Guard, content_security_policy
from starlette.types import Receive, Scope, Send

from tests.unit.server.edges.http.asking import asking


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("not asked")


@pytest.mark.parametrize(
    ("bound", "host", "is_ours"),
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "LocalHost:1234", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example:8080", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "192.168.0.1", False),
        ("127.0.0.1", "", False),
        ("localhost", "127.0.0.1", True),
        ("::1", "[::1]", True),
        ("0.0.0.0", "10.1.2.3:80", True),
        ("0.0.0.0", "[fe80::1]:80", True),
        ("0.0.0.0", "localhost", True),
        ("::", "10.1.2.3", True),
        ("0.0.0.0", "teacher.evil.example", False),
        ("10.1.2.3", "10.1.2.3:8080", True),
        ("10.1.2.3", "10.1.2.4", False),
        ("10.1.2.3", "localhost", False),
        ("teacher.lan", "teacher.lan:80", True),
        ("teacher.lan", "other.lan", False),
        ("127.0.0.1", "proxy.lan:443", True),
    ],
)
def test_a_host_is_ours_by_address_or_by_a_name_that_was_set(bound: str, host: str, is_ours: bool) -> None:
    assert Guard(nothing, bound_host=bound, allowed_hosts=["proxy.lan"]).is_ours(host) is is_ours


async def test_a_name_that_another_page_points_here_gets_nothing() -> None:
    async with asking() as asked:
        for path in ("/", "/v1/info", "/healthz", "/openapi.json", "/static/index.html"):
            answer = await asked.client.get(path, headers={"Host": "evil.example"})
            assert (answer.status_code, answer.json()["reason"]) == (421, "UNKNOWN_HOST")


def test_the_policy_allows_this_server_and_the_teachers_to_compare_with_alone() -> None:
    policy = content_security_policy(["http://127.0.0.1:8081"])
    assert policy == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self' http://127.0.0.1:8081; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def test_every_answer_has_the_headers_that_protect_a_browser() -> None:
    async with asking() as asked:
        for path, status in (("/", 200), ("/v1/info", 200), ("/nope", 404), ("/readyz", 200)):
            answer = await asked.client.get(path)
            assert answer.status_code == status
            assert answer.headers["content-security-policy"] == content_security_policy([])
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"


async def preflight(client: httpx.AsyncClient, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    return await client.options("/v1/topk", headers=headers)


async def test_no_page_of_another_origin_may_ask() -> None:
    async with asking() as asked:
        for answer in (
            await preflight(asked.client, "http://elsewhere"),
            await asked.client.get("/v1/info", headers={"Origin": "http://elsewhere"}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_page_that_was_named_may() -> None:
    async with asking(allow_origins=["http://127.0.0.1:8081"]) as asked:
        allowed = await preflight(asked.client, "http://127.0.0.1:8081")
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "http://127.0.0.1:8081")
        refused = await preflight(asked.client, "http://127.0.0.1:8082")
        assert "access-control-allow-origin" not in refused.headers
        asked_by_it = await asked.client.get("/v1/info", headers={"Origin": "http://127.0.0.1:8081"})
        assert asked_by_it.headers["access-control-allow-origin"] == "http://127.0.0.1:8081"
        assert "access-control-allow-credentials" not in asked_by_it.headers
