"""Scores from a cache: what is asked of the server and what is not, and training's questions offline."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from preceptor.v1 import teacher_pb2
from preceptor_client import GroupScores, ScoreCache, StudentIds, TeacherClient, TeacherIds, Text, TransportError
from preceptor_client import cached_scoring as cached_scoring_module
from preceptor_client.cache_file import CacheFile
from preceptor_client.errors import CorruptAnswerError, NotInCacheError, PreceptorError, TeacherUnavailableError
from preceptor_client.score_cache import CacheMode

from tests.unit.client.in_memory import InMemory
from tests.unit.client.scripted_teacher import Lie, ScriptedTeacher, serving
from tests.unit.client.test_replicas import TOKENIZER

ADDRESS = "nobody:1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "scores"


@pytest.fixture
def cache(path: Path) -> Iterator[ScoreCache]:
    with ScoreCache(path) as opened:
        yield opened


def asked(transport: InMemory) -> int:
    return [method for method, _ in transport.asked].count("Score")


def assert_same(one: GroupScores, other: GroupScores) -> None:
    """All but the timings, bit for bit."""
    for field in dataclasses.fields(one):
        if field.name not in ("responses", "timings"):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))
    for mine, theirs in zip(one.responses, other.responses, strict=True):
        for field in dataclasses.fields(mine):
            np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name))


async def test_what_was_asked_before_is_not_asked_again_and_is_the_same(cache: ScoreCache) -> None:
    transport = InMemory()
    options: dict[str, Any] = {"score_masks": [[1, 0, 1], None], "candidate_ids": [np.array([[4, 5]] * 3), None]}
    async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
        first = await client.score(Text("hello"), [[7, 8, 9], [10]], top_k=4, request_id="a", **options)
        again = await client.score(Text("hello"), [[7, 8, 9], [10]], top_k=4, request_id="b", **options)
        assert asked(transport) == 1
        other = await client.score(Text("hello"), [[7, 8, 9], [11]], top_k=4, request_id="a", **options)
        assert asked(transport) == 2
    assert_same(first, again)
    assert not np.array_equal(other.responses[1].sampled_logprobs_N, first.responses[1].sampled_logprobs_N)
    assert (first.timings.total_ms, again.timings.total_ms) == (6.5, 0.0)


async def test_another_client_and_another_process_life_find_it(path: Path) -> None:
    transport = InMemory()
    for _ in range(2):
        with ScoreCache(path) as cache:
            async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
                await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert asked(transport) == 1


async def test_new_weights_of_this_client_are_asked_at_once(cache: ScoreCache) -> None:
    transport = InMemory()
    async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
        for path in ("one", "two", "one"):
            await client.update_weights(path)
            scores = [await client.score(TeacherIds([1]), [[1]], top_k=2) for _ in range(3)]
            assert {one.revision for one in scores} == {f"of {path}"}
    # The third weights are the first again: known.
    assert asked(transport) == 2


async def test_new_weights_of_others_are_noticed_by_an_answer_or_after_a_while(
    cache: ScoreCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = InMemory()
    async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        transport.teacher(ADDRESS).revision = "r2"
        # Another question is answered by r2, and is not stored as r1's.
        assert (await client.score(TeacherIds([1]), [[2]], top_k=2)).revision == "r2"
        assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).revision == "r2"
        transport.teacher(ADDRESS).revision = "r3"
        monkeypatch.setattr(cached_scoring_module, "INFO_SECONDS", 0.0)
        assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).revision == "r3"
        transport.teacher(ADDRESS).revision = "r1"
        assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).revision == "r1"
        assert (await client.score(TeacherIds([1]), [[2]], top_k=2)).revision == "r1"
    assert asked(transport) == 5


async def test_a_server_that_comes_back_is_asked_what_it_hosts(cache: ScoreCache) -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher(revision="r2")
    async with serving(first) as address:
        client = TeacherClient(address, cache=cache, timeout_seconds=20)
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert (first.num_infos, len(first.requests)) == (1, 1)
    async with serving(second, port=int(address.split(":")[1])):
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        await client.close()
    assert second.num_infos == 1
    assert len(second.requests) == 1


async def test_a_server_that_comes_back_is_asked_over_another_transport_too(cache: ScoreCache) -> None:
    transport = InMemory()
    async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        transport.failure = TransportError(grpc.StatusCode.UNAVAILABLE, "gone")
        with pytest.raises(TeacherUnavailableError):
            await client.score(TeacherIds([1]), [[2]], top_k=2, timeout_seconds=0.05)
        transport.failure, transport.teacher(ADDRESS).revision = None, "r2"
        assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).revision == "r2"


async def test_refresh_asks_for_everything_and_stores_it(path: Path) -> None:
    transport = InMemory()
    with ScoreCache(path, mode="refresh") as cache:
        async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
            for _ in range(3):
                await client.score(TeacherIds([1]), [[1]], top_k=2)
        assert await cache.size() == (1, (await cache.size())[1])
    assert asked(transport) == 3


async def train_like(client: TeacherClient) -> list[GroupScores]:
    """What a run asks."""
    info = await client.info(include_tokenizer=True)
    assert info.teachers[0].name == "tutor"
    registered = await client.register_tokenizer(TOKENIZER, end_token_ids=[7])
    assert registered.report.differences == ("chat_template",)
    calls = [
        client.score(StudentIds([n]), [[n, n + 1], [3]], top_k=3, tokenizer_id=registered.tokenizer_id)
        for n in range(20)
    ]
    return list(await asyncio.gather(*calls))


async def test_a_run_goes_on_offline_with_what_it_asked_before(path: Path) -> None:
    transport = InMemory()
    transport.teacher(ADDRESS).tokenizer_json = b"{}"
    with ScoreCache(path) as cache:
        async with TeacherClient(f"grpcs://{ADDRESS}", transport=transport, cache=cache) as client:
            online = await train_like(client)
    with ScoreCache(path, mode="offline") as cache:
        async with TeacherClient(ADDRESS, cache=cache) as client:
            offline = await train_like(client)
            assert (await client.info()).teachers[0].tokenizer_json == ""
            assert (await client.info(include_tokenizer=True)).teachers[0].tokenizer_json == "{}"
            with pytest.raises(NotInCacheError, match="new weights need a server"):
                await client.update_weights("new")
            with pytest.raises(NotInCacheError, match="lacks this tokenizer's registration at nobody:1"):
                await client.register_tokenizer(TOKENIZER, end_token_ids=[8])
    for one, other in zip(online, offline, strict=True):
        assert_same(one, other)


async def test_what_is_missing_offline_is_named(path: Path) -> None:
    with ScoreCache(path) as cache:
        async with TeacherClient(ADDRESS, transport=InMemory(), cache=cache) as client:
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    forbidden = InMemory()
    with ScoreCache(path, mode="offline") as cache:
        async with TeacherClient(ADDRESS, transport=forbidden, cache=cache) as client:
            with pytest.raises(NotInCacheError) as caught:
                await client.score(Text("secret"), [[1, 2], [3]], top_k=2, request_id="step-7", teacher="tutor")
            for said in (
                "step-7",
                "a text of 6 characters",
                "2 response(s) of 2, 1 tokens",
                "top_k=2",
                "'r1'",
                str(path),
            ):
                assert said in str(caught.value)
            assert "secret" not in str(caught.value)
            with pytest.raises(NotInCacheError, match="lacks teacher 'nobody' with adapter ''"):
                await client.score(TeacherIds([1]), [[1]], top_k=2, teacher="nobody")
        async with TeacherClient("other:1", transport=forbidden, cache=cache) as client:
            with pytest.raises(NotInCacheError, match=r"at other:1; addresses that it knows: nobody:1\."):
                await client.info()
    assert forbidden.asked == []


async def test_an_answer_that_does_not_verify_is_not_stored(cache: ScoreCache) -> None:
    lie = Lie(change=lambda answer: setattr(answer, "temperature", 2.0))
    teacher = ScriptedTeacher([lie])
    async with serving(teacher) as address, TeacherClient(address, cache=cache) as client:
        with pytest.raises(CorruptAnswerError):
            await client.score(TeacherIds([1]), [[1]], top_k=2)
        assert await cache.size() == (0, 0)
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 2


@pytest.mark.parametrize("mode", ["use", "offline"])
async def test_a_stored_answer_to_something_else_is_refused_though_its_checksum_is_right(
    path: Path, mode: CacheMode, caplog: pytest.LogCaptureFixture
) -> None:
    transport = InMemory()
    with ScoreCache(path) as cache:
        async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
            await client.score(TeacherIds([1]), [[1]], top_k=2)
    with sqlite3.connect(path) as db:
        ((key, value),) = db.execute("SELECT key, value FROM entries").fetchall()
    db.close()
    answer = teacher_pb2.ScoreResponse.FromString(value)
    answer.responses[0].digest = bytes(32)
    file = CacheFile(path, max_bytes=1 << 20, must_exist=True)
    file.put(key, answer.SerializeToString())
    file.close()
    with ScoreCache(path, mode=mode) as cache:
        async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
            if mode == "offline":
                with pytest.raises(CorruptAnswerError, match="digest"):
                    await client.score(TeacherIds([1]), [[1]], top_k=2)
            else:
                for _ in range(2):
                    assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).responses
                assert "it is asked for again" in caplog.text
    assert asked(transport) == (1 if mode == "offline" else 2)


async def test_scoring_goes_on_with_a_cache_that_cannot_be_used(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("no database" * 1000)
    transport = InMemory()
    with ScoreCache(path) as cache:
        async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
            for _ in range(3):
                assert (await client.score(TeacherIds([1]), [[1]], top_k=2)).responses
    assert asked(transport) == 3
    assert len(caplog.records) == 1


async def test_a_server_that_is_away_is_waited_for_also_where_the_cache_has_the_answer(cache: ScoreCache) -> None:
    # Its weights may be others since.
    transport = InMemory()
    async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    transport.failure = TransportError(grpc.StatusCode.UNAVAILABLE, "gone")
    async with TeacherClient(ADDRESS, transport=transport, cache=cache, timeout_seconds=0.2) as client:
        with pytest.raises(TeacherUnavailableError):
            await client.score(TeacherIds([1]), [[1]], top_k=2)


async def test_what_the_server_would_refuse_is_left_to_it(cache: ScoreCache) -> None:
    transport = InMemory()
    async with TeacherClient(ADDRESS, transport=transport, cache=cache) as client:
        # Its adapters are not known to have this one: asked, and not stored.
        for _ in range(2):
            await client.score(TeacherIds([1]), [[1]], top_k=2, adapter="new")
        assert asked(transport) == 2
        transport.failure = TransportError(grpc.StatusCode.INTERNAL, "broken", reason="BAD_GROUP")
        with pytest.raises(PreceptorError, match="broken"):
            await client.score(TeacherIds([1]), [[9]], top_k=2)
    assert await cache.size() == (0, 0)
