"""The HTTP side as a part of the server's life: start, what is refused, engine death, drain, callers that leave."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import httpx
import numpy as np
import pytest
from preceptor.wire import LogprobDtype
from preceptor_client import TeacherClient, TeacherIds

from tests.engines.fake import fake_arguments
from tests.engines.mortal_fake import mortal_fake_arguments
from tests.integration.http.serving import SECONDS, Body, free_port, running_both
from tests.integration.servers import run_server_to_its_end, start_server

FAKE = fake_arguments()
GROUP: Body = {"prompt": {"teacher_ids": [1, 2]}, "responses": [{"ids": [3, 4, 5]}], "top_k": 2}
LONG: Body = GROUP | {"responses": [{"ids": [3] * 98}]}
SLOW = fake_arguments(seconds_per_token=0.02)
"""LONG takes two seconds. So does the self-test, more or less."""


async def first_answer(client: httpx.AsyncClient, path: str) -> httpx.Response:
    """Asks until somebody listens."""
    while True:
        try:
            return await client.get(path)
        except httpx.ConnectError:
            await asyncio.sleep(0.05)


async def becomes(client: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """Asks until the answer has this status."""
    while (answer := await client.get(path)).status_code != status:
        await asyncio.sleep(0.02)
    return answer


async def test_it_lives_before_the_model_is_loaded_and_is_ready_after(tmp_path: Path) -> None:
    port = free_port()
    starting = asyncio.create_task(asyncio.to_thread(start_server, tmp_path, *SLOW, "--http.port", str(port)))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS, trust_env=False) as client:
        alive = await asyncio.wait_for(first_answer(client, "/healthz"), SECONDS)
        unready = await client.get("/readyz")
        early = await client.post("/v1/topk", json=GROUP)
        server = await starting
        try:
            assert alive.json() == {"status": "alive"}
            assert (unready.status_code, unready.json()["reason"]) == (503, "NOT_SERVING")
            assert (early.status_code, early.json()["reason"]) == (503, "ENGINE_UNAVAILABLE")
            assert (await client.get("/readyz")).status_code == 200
            assert await asyncio.to_thread(server.stop) == 0
        finally:
            server.kill()


def test_a_port_in_use_is_told_with_its_setting_before_the_model_is_loaded(tiny_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_server_to_its_end(
            "--engine.model", str(tiny_folder), "--listen.port", "0", "--http.port", port
        )  # fmt: skip
    assert result.returncode == 1
    assert f"http: cannot bind to 127.0.0.1:{port}" in result.stderr
    assert "Set http.port to another, or to 0" in result.stderr
    assert "model loaded" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_public_address_is_refused_without_a_word_that_it_may_be() -> None:
    result = run_server_to_its_end(*FAKE, "--http.port", "0", "--http.host", "0.0.0.0")
    assert (result.returncode, "allow_insecure=true" in result.stderr) == (2, True)


async def test_a_server_that_cannot_start_ends_although_it_answers_already(tmp_path: Path) -> None:
    result = await asyncio.to_thread(
        run_server_to_its_end, *FAKE, "--engine.tokenizer", "./nowhere", "--listen.port", "0", "--http.port", "0"
    )
    assert (result.returncode, "engine.tokenizer: no folder './nowhere'" in result.stderr) == (1, True)


async def test_sigterm_finishes_what_is_in_flight_and_lets_go_of_who_only_waits(tmp_path: Path) -> None:
    with running_both(tmp_path, *SLOW, "--http.record", "5") as both:
        async with both.async_client() as client:
            in_flight = asyncio.create_task(client.post("/v1/topk", json=LONG))
            waiting = asyncio.create_task(client.get("/v1/requests", params={"wait_seconds": 30, "after": 1}))
            stats = await client.get("/v1/stats")
            while not stats.json()["tokens_in_flight"]:
                stats = await client.get("/v1/stats")
            both.server.process.send_signal(signal.SIGTERM)
            assert (await waiting).json() == {"records": [], "last": 0, "is_recording": True}
            answer = await in_flight
        assert answer.status_code == 200
        assert answer.json()["responses"][0]["positions"] == list(range(98))
        assert await asyncio.to_thread(both.server.process.wait, 20) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{both.url}/healthz", trust_env=False)
    assert "level=ERROR" not in both.server.log.read_text()


async def test_readiness_follows_an_engine_that_dies_and_comes_back(tmp_path: Path) -> None:
    # As in test_dying_engine.py: four groups of the self-test, one is answered in every life, the next one kills.
    with running_both(tmp_path, *mortal_fake_arguments(dies_after_groups=5)) as both:
        async with both.async_client() as client:
            assert (await client.post("/v1/topk", json=GROUP)).status_code == 200
            died = await client.post("/v1/topk", json=GROUP)
            assert (died.status_code, died.json()["reason"]) == (503, "ENGINE_DIED")
            assert died.headers["retry-after"] == "1"
            unready = await becomes(client, "/readyz", 503)
            assert unready.json()["reason"] == "NOT_SERVING"
            refused = await client.post("/v1/topk", json=GROUP)
            assert (refused.status_code, refused.json()["reason"]) == (503, "ENGINE_UNAVAILABLE")
            assert (await client.get("/healthz")).status_code == 200
            await asyncio.wait_for(becomes(client, "/readyz", 200), SECONDS)
            assert (await client.post("/v1/topk", json=GROUP)).status_code == 200


async def test_a_caller_that_hangs_up_never_costs_a_forward(tmp_path: Path) -> None:
    with running_both(tmp_path, *SLOW, "--log-level", "DEBUG", "--scheduler.max-batch-tokens", "5") as both:
        async with both.async_client() as client:
            first = asyncio.create_task(client.post("/v1/topk", json=LONG))
            while not (await client.get("/v1/stats")).json()["tokens_in_flight"]:
                pass
            waiting = asyncio.create_task(client.post("/v1/topk", json=GROUP | {"prompt": {"teacher_ids": [9] * 100}}))
            while not (await client.get("/v1/stats")).json()["queue_groups"]:
                pass
            waiting.cancel()
            while (await client.get("/v1/stats")).json()["queue_groups"]:
                pass
            assert (await first).status_code == 200
            assert (await client.post("/v1/topk", json=GROUP)).status_code == 200
        await asyncio.to_thread(both.server.stop)
    assert "tokens=103" not in both.server.log.read_text()
    assert "tokens=100" in both.server.log.read_text()


async def test_a_long_response_with_a_large_support_is_answered_in_every_form(tmp_path: Path) -> None:
    ids = [(7 * index) % 500 for index in range(4096)]
    arguments = [*fake_arguments(vocabulary_size=500), "--engine.max-model-len", "5000"]
    body: Body = {"prompt": {"teacher_ids": [1]}, "responses": [{"ids": ids}], "top_k": 64}
    with running_both(tmp_path, *arguments) as both:
        async with both.async_client() as client, TeacherClient(both.server.address) as teacher:
            expected = await teacher.score(TeacherIds([1]), [ids], top_k=64, logprob_dtype=LogprobDtype.F32)
            whole = (await client.post("/v1/topk", json=body)).json()
            lines = await client.post("/v1/topk", json=body, headers={"accept": "application/x-ndjson"})
    [response], [scores] = whole["responses"], expected.responses
    np.testing.assert_array_equal(np.float32(response["support_logprobs"]), scores.support_logprobs_NK)
    assert response["support_ids"] == scores.support_ids_NK.tolist()
    pieces = [json.loads(line) for line in lines.text.splitlines()]
    assert len(pieces) > 10, "it comes in pieces"
    rows = [row for piece in pieces[1:-1] for row in piece["rows"]["support_logprobs"]]
    assert rows == response["support_logprobs"]
    assert pieces[-1] == {"done": True}
    assert pieces[0]["responses"][0]["ids"] == ids
