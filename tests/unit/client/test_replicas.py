"""Several servers of one teacher behind one client: who is asked, who stands in, and what must be the same."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from preceptor.fingerprint import tokenizer_id
from preceptor_client import (
    BlockingTeacherClient,
    Chat,
    ChatMessage,
    RetryPolicy,
    StudentIds,
    TeacherClient,
    TeacherIds,
    Text,
)
from preceptor_client.affinity import NUM_PREFIX_TOKENS, rendezvous_order
from preceptor_client.connection import Connection
from preceptor_client.errors import (
    CorruptAnswerError,
    InvalidRequestError,
    ReplicasDifferError,
    TeacherUnavailableError,
)
from preceptor_client.replica import Replica
from preceptor_client.replica_order import MIN_BUSY_CALLS
from preceptor_client.replicas import Replicas
from preceptor_client.retry import RetryEvent
from preceptor_client.types import Prompt, ServerInfo

from tests.unit.client.scripted_teacher import Abort, Hang, Lie, ScriptedTeacher, serving
from tests.unit.client.test_blocking import served_elsewhere

TOKENIZER = json.dumps({"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": []})
QUICK = RetryPolicy(initial_seconds=0.01, max_seconds=0.05)
GONE = Abort(code=grpc.StatusCode.UNAVAILABLE, message="draining")
FULL = Abort(code=grpc.StatusCode.RESOURCE_EXHAUSTED, message="queue is full", reason="QUEUE_FULL")
NOBODY = "127.0.0.1:1"


@asynccontextmanager
async def serving_two(
    first: ScriptedTeacher,
    second: ScriptedTeacher,
    **options: Any,  # Any: whatever TeacherClient takes
) -> AsyncIterator[TeacherClient]:
    async with (
        serving(first) as one,
        serving(second) as other,
        TeacherClient(f"{one}, {other}", **{"retry": QUICK, "timeout_seconds": 20, **options}) as client,
    ):
        yield client


def prompts_of(teacher: ScriptedTeacher) -> Counter[bytes]:
    return Counter(request.prompt.teacher_ids.data for request in teacher.requests)


def replicas_of(*addresses: str) -> Replicas:
    connections = [
        Connection(
            address,
            attempt_timeout_seconds=None,
            retry=QUICK,
            caller="test",
            max_message_bytes=1 << 20,
            on_retry=None,
            is_patient=False,
        )
        for address in addresses
    ]
    return Replicas([Replica(connection) for connection in connections], retry=QUICK, on_retry=None)


async def ask_info(replica: Replica, seconds: float) -> ServerInfo:
    return await replica.info(include_tokenizer=False, timeout_seconds=seconds)


def change_to_r2(by_address: dict[str, ScriptedTeacher]) -> Callable[[Replica, float], Awaitable[None]]:
    """Stands for an update of weights: reaches the server, which then tells of another revision."""

    async def change(replica: Replica, seconds: float) -> None:
        await ask_info(replica, seconds)
        by_address[replica.address].info_changes = {"revision": "r2"}

    return change


async def score_each(client: TeacherClient, prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        await client.score(prompt, [[1, 2]], top_k=2)


def preferring(address: str, others: Sequence[str]) -> TeacherIds:
    """A prompt that goes to `address` first."""
    for token in range(1000):
        prefix = np.array([token], "<i8").tobytes()
        if rendezvous_order(prefix, [address, *others])[0] == address:
            return TeacherIds([token])
    raise AssertionError("none of 1000 prompts prefers this address")


async def test_prompts_are_spread_and_each_stays_with_its_replica() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    async with serving_two(first, second) as client:
        await score_each(client, [TeacherIds([index % 60, 7]) for index in range(180)])
    assert prompts_of(first) & prompts_of(second) == Counter()
    assert set((prompts_of(first) + prompts_of(second)).values()) == {3}
    # Binomial, 60 prompts at 1/2: fewer than 12 on one side has a chance of 1e-6.
    assert min(len(prompts_of(first)), len(prompts_of(second))) >= 12


def test_an_address_that_leaves_moves_its_own_prompts_alone() -> None:
    addresses = ["a:1", "b:1", "c:1"]
    for index in range(200):
        order = rendezvous_order(bytes([index]), addresses)
        for gone in addresses:
            kept = [address for address in order if address != gone]
            assert rendezvous_order(bytes([index]), [one for one in addresses if one != gone]) == kept


def test_order_does_not_depend_on_how_the_addresses_are_listed() -> None:
    assert rendezvous_order(b"prompt", ["a:1", "b:1", "c:1"]) == rendezvous_order(b"prompt", ["c:1", "a:1", "b:1"])


@pytest.mark.parametrize(
    "prompts",
    [
        [TeacherIds([5] * NUM_PREFIX_TOKENS + [index]) for index in range(20)],
        [StudentIds([5] * NUM_PREFIX_TOKENS + [index]) for index in range(20)],
        [Text("a" * 1024 + str(index)) for index in range(20)],
        [Chat((ChatMessage("system", "a" * 1024), ChatMessage("user", str(index)))) for index in range(20)],
    ],
    ids=["teacher ids", "student ids", "text", "chat"],
)
async def test_prompts_that_begin_alike_share_a_replica(prompts: list[Prompt]) -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    async with serving_two(first, second) as client:
        await score_each(client, prompts)
    assert sorted([len(first.requests), len(second.requests)]) == [0, 20]


async def test_prompts_that_all_begin_alike_still_use_both_replicas_when_there_are_many_at_once() -> None:
    first, second = ScriptedTeacher([Hang(seconds=0.5)] * 40), ScriptedTeacher([Hang(seconds=0.5)] * 40)
    async with serving_two(first, second) as client:
        await asyncio.gather(*(client.score(TeacherIds([5]), [[1]], top_k=2) for _ in range(40)))
    fewest, most = sorted([len(first.requests), len(second.requests)])
    assert fewest >= MIN_BUSY_CALLS
    # At most 1.25 times the fair share of 20, rounded up.
    assert most <= 26


async def test_while_one_is_down_the_other_answers_and_the_caller_is_told() -> None:
    events: list[RetryEvent] = []
    teacher = ScriptedTeacher()
    async with (
        serving(teacher) as address,
        TeacherClient(f"{NOBODY},{address}", retry=QUICK, timeout_seconds=20, on_retry=events.append) as client,
    ):
        await score_each(client, [preferring(NOBODY, [address])] * 5)
    assert len(teacher.requests) == 5
    assert (events[0].address, events[0].code, events[0].next_delay_seconds) == (NOBODY, "UNAVAILABLE", 0.0)
    # It rests: four calls did not try it.
    assert len(events) == 1


async def test_calls_return_to_a_replica_that_comes_back() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    async with serving(second) as other:
        async with serving(first) as one:
            port = int(one.split(":")[1])
            client = TeacherClient(f"{one},{other}", retry=QUICK, timeout_seconds=20)
            prompt = preferring(one, [other])
            await score_each(client, [prompt])
        await score_each(client, [prompt])
        assert (len(first.requests), len(second.requests)) == (1, 1)
        async with serving(first, port=port), asyncio.timeout(15):
            while len(first.requests) == 1:
                await score_each(client, [prompt])
                await asyncio.sleep(0.1)
        await client.close()


async def test_a_full_replica_is_left_for_the_other_at_once() -> None:
    first, second = ScriptedTeacher([FULL]), ScriptedTeacher([FULL])
    async with serving_two(first, second) as client:
        await score_each(client, [TeacherIds([index]) for index in range(12)])
    assert len(first.requests) + len(second.requests) == 14


async def test_when_all_are_away_the_call_waits_and_goes_round_again() -> None:
    events: list[RetryEvent] = []
    first, second = ScriptedTeacher([GONE, GONE]), ScriptedTeacher([GONE, GONE])
    async with serving_two(first, second, on_retry=events.append) as client:
        await score_each(client, [TeacherIds([1])])
    assert len(first.requests) + len(second.requests) == 5
    assert [event.next_delay_seconds > 0 for event in events] == [False, True, False, True]
    assert [event.attempt for event in events] == [1, 2, 3, 4]


async def test_nobody_there_names_every_address_and_keeps_the_deadline() -> None:
    async with TeacherClient(f"{NOBODY},127.0.0.1:2", retry=QUICK, timeout_seconds=1.5) as client:
        async with asyncio.timeout(10):
            with pytest.raises(TeacherUnavailableError, match=r"127.0.0.1:1, 127.0.0.1:2 gave an answer.*UNAVAILABLE"):
                await client.score(TeacherIds([1]), [[1]], top_k=2)
            with pytest.raises(TeacherUnavailableError, match=r"127.0.0.1:1, 127.0.0.1:2 gave an answer"):
                await client.info()


async def test_a_refusal_names_the_replica_and_is_not_put_to_the_other() -> None:
    refusal = Abort(code=grpc.StatusCode.INVALID_ARGUMENT, reason="BAD", field="top_k")
    first, second = ScriptedTeacher([refusal]), ScriptedTeacher([refusal])
    async with serving_two(first, second) as client:
        with pytest.raises(InvalidRequestError, match=r"teacher 127\.0\.0\.1:\d+: INVALID_ARGUMENT"):
            await score_each(client, [TeacherIds([1])])
    assert len(first.requests) + len(second.requests) == 1


WRONG = Lie(change=lambda answer: setattr(answer.responses[0], "digest", bytes(32)))


@pytest.mark.parametrize("hedge_seconds", [None, 30.0])
async def test_a_replica_whose_answer_is_wrong_is_left_for_the_other_and_named(
    hedge_seconds: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[RetryEvent] = []
    wrong, right = ScriptedTeacher([WRONG] * 100), ScriptedTeacher()
    async with serving(wrong) as one, serving(right) as other:
        prompt = preferring(one, [other])
        async with TeacherClient(
            f"{one},{other}",
            retry=QUICK,
            timeout_seconds=20,
            on_retry=events.append,
            hedge_seconds=hedge_seconds,
        ) as client:
            scores = await client.score(prompt, [[1, 2]], top_k=2)
            await score_each(client, [prompt] * 3)
    async with serving(right) as alone, TeacherClient(alone) as client:
        expected = await client.score(prompt, [[1, 2]], top_k=2)
    assert scores.responses[0].support_logprobs_NK.tolist() == expected.responses[0].support_logprobs_NK.tolist()
    assert len(wrong.requests) == 1, "it rests"
    assert [(event.address, event.code, event.next_delay_seconds) for event in events] == [(one, "DATA_LOSS", 0.0)]
    assert "responses[0].digest" in events[0].message
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert said[0].startswith(f"replica answers wrongly: address={one}")


async def test_where_every_answer_is_wrong_the_call_ends_at_once_with_that() -> None:
    first, second = ScriptedTeacher([WRONG]), ScriptedTeacher([WRONG])
    async with serving_two(first, second) as client:
        with pytest.raises(CorruptAnswerError, match=r"responses\[0\].digest"):
            await score_each(client, [TeacherIds([1])])
    assert len(first.requests) + len(second.requests) == 2


async def test_a_wrong_replica_waits_for_one_that_is_away_and_is_what_is_told_in_the_end() -> None:
    wrong, away = ScriptedTeacher([WRONG] * 1000), ScriptedTeacher([GONE])
    async with serving_two(wrong, away) as client:
        await score_each(client, [TeacherIds([1])])
    assert len(away.requests) == 2
    wrong, away = ScriptedTeacher([WRONG] * 1000), ScriptedTeacher([GONE] * 1000)
    async with serving_two(wrong, away, timeout_seconds=1.5) as client:
        with pytest.raises(CorruptAnswerError, match=r"responses\[0\].digest"):
            await score_each(client, [TeacherIds([1])])
    assert len(away.requests) > 2


async def test_a_tokenizer_is_handed_to_both() -> None:
    first, second = ScriptedTeacher(is_strict=True), ScriptedTeacher(is_strict=True)
    async with serving_two(first, second) as client:
        registered = await client.register_tokenizer(TOKENIZER)
        for index in range(20):
            await client.score(StudentIds([index]), [[2]], top_k=2, tokenizer_id=registered.tokenizer_id)
    assert len(first.registrations) == len(second.registrations) == 2
    assert first.requests
    assert second.requests
    assert len(first.requests) + len(second.requests) == 20


async def test_a_lost_tokenizer_is_handed_to_the_very_replica_that_lost_it() -> None:
    first, second = ScriptedTeacher(is_strict=True), ScriptedTeacher(is_strict=True)
    async with serving_two(first, second) as client:
        registered = await client.register_tokenizer(TOKENIZER)
        second.known.clear()
        for index in range(20):
            await client.score(StudentIds([index]), [[2]], top_k=2, tokenizer_id=registered.tokenizer_id)
    assert len(first.registrations) == 2
    assert [bool(request.tokenizer_json) for request in second.registrations] == [False, True, False, True]
    assert len(first.requests) + len(second.requests) == 21


async def test_a_replica_that_was_away_at_the_handing_over_gets_the_tokenizer_later() -> None:
    first, second = ScriptedTeacher(is_strict=True), ScriptedTeacher(is_strict=True, registration_script=[GONE])
    async with serving_two(first, second) as client:
        registered = await client.register_tokenizer(TOKENIZER)
        await asyncio.sleep(1.1)  # it rests
        for index in range(20):
            await client.score(StudentIds([index]), [[2]], top_k=2, tokenizer_id=registered.tokenizer_id)
    assert second.known == first.known
    assert second.requests


async def test_a_replica_that_dies_while_it_is_handed_a_tokenizer_again_is_left_for_the_other() -> None:
    first, second = ScriptedTeacher(is_strict=True), ScriptedTeacher(is_strict=True)
    async with serving_two(first, second) as client:
        registered = await client.register_tokenizer(TOKENIZER)
        second.known.clear()
        second.registration_script = [GONE] * 1000
        async with asyncio.timeout(10):
            for index in range(20):
                await client.score(StudentIds([index]), [[2]], top_k=2, tokenizer_id=registered.tokenizer_id)
    assert len([request for request in first.requests if request.tokenizer_id == registered.tokenizer_id]) == 20


async def test_replicas_that_register_under_different_ids_are_refused() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    second.known = {tokenizer_id(TOKENIZER, None): "other"}
    async with serving_two(first, second) as client:
        with pytest.raises(ReplicasDifferError, match=r"tokenizer_id is 'with-ends-.*' at .* and 'other' at "):
            await client.register_tokenizer(TOKENIZER)


DIFFERENCES = [
    ({"revision": "r2"}, r"teachers\[tutor\]\.revision is 'r[12]' at"),
    ({"vocabulary_id": "other"}, r"teachers\[tutor\]\.vocabulary_id is '(voc|other)'"),
    ({"max_top_k": 32}, r"limits\.max_top_k is (64|32) at"),
    ({"name": "someone"}, r"teachers is \['(tutor|someone)'\] at"),
]


@pytest.mark.parametrize(("changes", "says"), DIFFERENCES)
async def test_replicas_of_different_teachers_are_refused_with_both_addresses(
    changes: dict[str, str | int], says: str
) -> None:
    async with (
        serving(ScriptedTeacher()) as one,
        serving(ScriptedTeacher(info_changes=changes)) as other,
        TeacherClient(f"{one},{other}", retry=QUICK) as client,
    ):
        with pytest.raises(ReplicasDifferError, match=says) as caught:
            await client.info()
    assert one in str(caught.value)
    assert other in str(caught.value)


async def test_scores_of_a_different_teacher_are_refused_without_asking_for_info_first() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher(info_changes={"revision": "r2"})
    async with serving_two(first, second) as client:
        with pytest.raises(ReplicasDifferError):
            await score_each(client, [TeacherIds([index]) for index in range(40)])
    assert not (first.requests and second.requests)


async def test_a_replica_that_comes_back_as_another_teacher_is_refused() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    async with serving(second) as other:
        async with serving(first) as one:
            port = int(one.split(":")[1])
            client = TeacherClient(f"{one},{other}", retry=QUICK, timeout_seconds=20)
            await client.info()
        first.info_changes = {"revision": "r2"}
        # Nobody called while it was restarted, so no failure tells of it.
        async with serving(first, port=port):
            with pytest.raises(ReplicasDifferError, match=r"revision is 'r[12]'"):
                await score_each(client, [preferring(one, [other]), preferring(other, [one])])
        await client.close()


async def test_new_weights_at_every_replica_are_no_difference() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    async with serving_two(first, second) as client:
        await client.info()
        first.info_changes = second.info_changes = {"revision": "r2"}
        assert (await client.info()).teachers[0].revision == "r2"


async def test_a_change_is_asked_of_every_replica_and_waits_for_those_that_are_away() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    async with serving(second) as other:
        async with serving(first) as one:
            port = int(one.split(":")[1])
        replicas = replicas_of(one, other)
        changing = asyncio.create_task(replicas.change(change_to_r2({one: first, other: second}), timeout_seconds=20))
        await asyncio.sleep(0.2)
        assert not changing.done()
        async with serving(first, port=port):
            await changing
        # Compared anew: neither is taken for another teacher.
        await replicas.ask(ask_info, prefix=b"", timeout_seconds=20)
        await replicas.close()
    assert first.info_changes == second.info_changes == {"revision": "r2"}


async def test_a_change_that_one_replica_does_not_take_raises_and_no_score_is_taken_from_different_teachers() -> None:
    async with serving(ScriptedTeacher()) as one, serving(second := ScriptedTeacher()) as other:
        replicas = replicas_of(one, other)

        async def change_second_alone(replica: Replica, seconds: float) -> None:
            if replica.address == one:
                raise InvalidRequestError("no such folder")
            second.info_changes = {"revision": "r2"}

        with pytest.raises(InvalidRequestError, match="no such folder"):
            await replicas.change(change_second_alone, timeout_seconds=20)
        with pytest.raises(ReplicasDifferError):
            await replicas.info(include_tokenizer=False, timeout_seconds=20)
        await replicas.close()


async def test_an_only_address_is_never_asked_for_info_by_itself() -> None:
    teacher = ScriptedTeacher(info_changes={"revision": "r2"})
    async with serving(teacher) as address, TeacherClient(address) as client:
        await score_each(client, [TeacherIds([1])])
    assert teacher.num_infos == 0


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("a:1,,b:1", "has an empty part"),
        ("a:1,", "has an empty part"),
        ("a:1, a:1", "names 'a:1' twice"),
        ("a:1,b", "address 'b' has no port"),
        ("a:1,http://b:1", "has a scheme"),
    ],
)
def test_addresses_that_cannot_be_dialled_are_refused(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TeacherClient(address)


def test_blocking_twin_goes_on_with_the_other_replica() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    with served_elsewhere(second) as other:
        with served_elsewhere(first) as one:
            client = BlockingTeacherClient(f"{one},{other}", retry=QUICK, timeout_seconds=20)
            prompts = [preferring(one, [other]), preferring(other, [one])]
            futures = [client.submit(prompt, [[1]], top_k=2) for prompt in prompts * 3]
            assert all(future.result(timeout=10).responses for future in futures)
            assert (len(first.requests), len(second.requests)) == (3, 3)
        assert client.score(prompts[0], [[1]], top_k=2).responses
        assert len(second.requests) == 4
        client.close()
