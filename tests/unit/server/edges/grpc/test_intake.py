"""How much is read and decoded at once."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from preceptor_server.edges.grpc.intake import Intake
from preceptor_server.tenants.tenant import Tenant

LARGEST = 1 << 20


class Sent:
    """The context of a call whose message comes when it is told to."""

    def __init__(self, num_bytes: int, *, comes: bool = True) -> None:
        self.is_read = False
        self._num_bytes = num_bytes
        self.comes = asyncio.Event()
        if comes:
            self.comes.set()

    async def read(self) -> bytes:
        self.is_read = True
        await self.comes.wait()
        return bytes(self._num_bytes)


class Decoding:
    """Counts the bytes that are being decoded, in whatever threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = self.num_done = 0

    def __call__(self, data: bytes) -> int:
        with self._lock:
            self._now += len(data)
            self.most = max(self.most, self._now)
        time.sleep(0.01)
        with self._lock:
            self._now -= len(data)
            self.num_done += 1
        return len(data)


def intake_of(max_bytes: int = 64 * LARGEST) -> Intake:
    return Intake(max_message_bytes=LARGEST, max_bytes=max_bytes, read_seconds=10)


async def take(intake: Intake, sent: Any, decode: Any, tenant: str) -> Any:  # Any: stands for a context, and a decoder
    with ExitStack() as held, ExitStack() as arriving:
        return await intake.take(sent, tenant=Tenant(name=tenant), decode=decode, held=held, arriving=arriving)


async def test_bytes_that_are_decoded_at_once_never_pass_those_of_the_largest_message() -> None:
    intake, decoding = intake_of(), Decoding()
    sizes = [LARGEST, 300_000, 400_000, 500_000, 100_000] * 4
    done = await asyncio.gather(*(take(intake, Sent(size), decoding, f"t{i}") for i, size in enumerate(sizes)))
    assert done == sizes
    assert decoding.most <= LARGEST
    assert (intake.num_bytes, intake.num_bytes_decoded) == (0, 0)


async def test_large_messages_of_one_tenant_are_read_one_after_the_other_and_those_of_others_meanwhile() -> None:
    intake, decoding = intake_of(), Decoding()
    first, second, other = Sent(LARGEST, comes=False), Sent(LARGEST), Sent(LARGEST)
    large = [asyncio.create_task(take(intake, one, decoding, "a")) for one in (first, second)]
    assert await take(intake, other, decoding, "b") == LARGEST
    assert (first.is_read, second.is_read) == (True, False)
    first.comes.set()
    assert await asyncio.gather(*large) == [LARGEST, LARGEST]


async def test_large_message_keeps_the_next_of_its_tenant_waiting_until_it_has_arrived() -> None:
    intake, next_one, of_other = intake_of(), Sent(LARGEST), Sent(LARGEST)
    context: Any = Sent(LARGEST)
    with ExitStack() as held, ExitStack() as arriving:
        await intake.take(context, tenant=Tenant(name="a"), decode=len, held=held, arriving=arriving)
        waiting = asyncio.create_task(take(intake, next_one, len, "a"))
        assert await take(intake, of_other, len, "b") == LARGEST
        assert not next_one.is_read
        arriving.close()
        assert await waiting == LARGEST


async def test_small_messages_of_one_tenant_are_read_beside_each_other() -> None:
    intake, decoding = intake_of(), Decoding()
    await take(intake, Sent(1000), decoding, "a")
    slow = [Sent(1000, comes=False) for _ in range(20)]
    tasks = [asyncio.create_task(take(intake, one, decoding, "a")) for one in slow]
    await asyncio.sleep(0.05)
    # Of 32 that are read at once a tenant may have half.
    assert [one.is_read for one in slow] == [True] * 16 + [False] * 4
    for one in slow:
        one.comes.set()
    await asyncio.gather(*tasks)


async def test_a_caller_that_is_gone_counts_until_the_thread_has_done_with_its_message() -> None:
    intake, begun, may_end = intake_of(), threading.Event(), threading.Event()

    def decode(data: bytes) -> None:
        begun.set()
        may_end.wait(10)

    gone = asyncio.create_task(take(intake, Sent(LARGEST), decode, "a"))
    await asyncio.to_thread(begun.wait, 10)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert intake.num_bytes_decoded == LARGEST
    may_end.set()
    async with asyncio.timeout(10):
        while intake.num_bytes_decoded:
            await asyncio.sleep(0.01)
    assert await take(intake, Sent(LARGEST), len, "a") == LARGEST


@pytest.mark.parametrize("size", [1000, LARGEST])
async def test_a_message_that_cannot_be_decoded_leaves_its_turn_to_the_next(size: int) -> None:
    intake = intake_of()

    def fails(data: bytes) -> None:
        raise ValueError("no message")

    for _ in range(3):
        with pytest.raises(ValueError, match="no message"):
            await take(intake, Sent(size), fails, "a")
    assert await take(intake, Sent(size), len, "a") == size
    assert (intake.num_bytes, intake.num_bytes_decoded) == (0, 0)
