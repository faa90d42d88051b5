"""A client process: python -m bench.service.client. Takes a Load as JSON on standard input, behaves so, and reports."""

# T = tokens of a response

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
from preceptor_client import PreceptorError, RetryPolicy, TeacherClient, TeacherIds
from preceptor_client.retry import RetryEvent

from bench.service.ledger import LedgerWriter
from bench.service.loads import OK, Load, Report, Sample, now, unpack
from bench.workers import Request, serve

MAX_SAMPLES = 100_000
CONNECT_SECONDS = 120.0
LARGEST_MESSAGE = 64 << 20
_CODE = re.compile(r"\b[A-Z]{4,}(?:_[A-Z]+)*\b")
_MAX_TEXT = 400


class Client:
    """One process's connections and what comes of its groups."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rng = np.random.default_rng(load.seed)
        self._ledger = LedgerWriter(load.ledger)
        self._outcomes: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self._samples: list[Sample] = []
        self._revisions: Counter[str] = Counter()
        self._num_retries = 0
        self._sum_used = 0.0
        self._channels = [self._channel(index) for index in range(load.num_channels)]

    async def connect(self) -> None:
        for channel in self._channels:
            await channel.info(timeout_seconds=CONNECT_SECONDS)

    async def run(self) -> Report:
        """To the end of the load."""
        self._until = now() + self._load.seconds
        drive = {"burst": self._burst, "closed": self._closed, "open": self._open}[self._load.kind]
        await asyncio.gather(*(drive(channel) for channel in self._channels))
        await asyncio.gather(*(channel.close() for channel in self._channels))
        self._ledger.close()
        return Report(
            outcomes=dict(self._outcomes),
            messages=self._messages,
            samples=tuple(self._samples[:MAX_SAMPLES]),
            revisions=dict(self._revisions),
            num_retries=self._num_retries,
            resident_mib=psutil.Process().memory_info().rss / 2**20,
        )

    async def _burst(self, channel: TeacherClient) -> None:
        await asyncio.gather(*(self._score(channel) for _ in range(self._load.concurrency)))

    async def _closed(self, channel: TeacherClient) -> None:
        await asyncio.gather(*(self._loop(channel) for _ in range(self._load.concurrency)))

    async def _loop(self, channel: TeacherClient) -> None:
        if self._load.think_seconds:  # so that loops do not march in step
            await asyncio.sleep(self._rng.uniform(0, self._load.think_seconds))
        num_left = self._load.num_groups or math.inf
        while num_left > 0 and not self._is_over():
            num_left -= 1
            is_ok = await self._score(channel)
            if self._load.think_seconds:
                await asyncio.sleep(self._rng.exponential(self._load.think_seconds))
            elif not is_ok:
                await asyncio.sleep(0.01)  # a server that refuses at once shall not be all that is measured

    async def _open(self, channel: TeacherClient) -> None:
        tasks, started, index = set(), now(), 0
        while not self._is_over():
            task = asyncio.create_task(self._score(channel))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            index += 1
            await asyncio.sleep(max(0.0, started + index / self._load.per_second - now()))
        await asyncio.gather(*tasks)

    def _is_over(self) -> bool:
        return now() >= self._until or bool(self._load.stop_file and os.path.exists(self._load.stop_file))

    async def _score(self, channel: TeacherClient) -> bool:
        load, request_id = self._load, secrets.token_hex(12)
        prompt = self._rng.integers(0, load.vocabulary_size, load.shape.prompt)
        responses = [self._response() for _ in range(load.shape.num_responses)]
        self._ledger.note("sent", request_id)
        began = now()
        try:
            scores = await channel.score(
                TeacherIds(prompt), responses, top_k=load.top_k, teacher=load.teacher, request_id=request_id
            )
        except PreceptorError as error:
            self._failed(error)
            return False
        self._ledger.note("scored", request_id)
        sampled = np.concatenate([one.sampled_logprobs_N for one in scores.responses])
        if len(sampled) == load.shape.num_responses * load.shape.response and np.isfinite(sampled).all():
            self._sum_used += float(sampled.sum())
            self._ledger.note("used", request_id)
        self._outcomes[OK] += 1
        self._revisions[scores.revision] += 1
        self._samples.append(
            Sample(
                began=began,
                ended=now(),
                num_tokens=load.shape.num_tokens,
                forward_seconds=scores.timings.forward_ms / 1000,
            )
        )
        return True

    def _response(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        ids_T = self._rng.integers(0, self._load.vocabulary_size, self._load.shape.response)
        if self._load.bad_token is not None:
            ids_T[0] = self._load.bad_token
        return ids_T

    def _failed(self, error: PreceptorError) -> None:
        match = _CODE.search(str(error))
        reason = f"{type(error).__name__} {match[0] if match else ''}".strip()
        self._outcomes[reason] += 1
        self._messages.setdefault(reason, str(error)[:_MAX_TEXT])

    def _channel(self, index: int) -> TeacherClient:
        load = self._load
        options: dict[str, Any] = {"api_key": load.api_key} if load.api_key else {}
        return TeacherClient(
            load.address,
            timeout_seconds=load.timeout_seconds,
            retry=RetryPolicy(),
            caller=f"{load.caller}-{index}" if load.names_differ else load.caller,
            # gRPC shares a connection between channels of equal options: an option that differs keeps them apart.
            max_message_bytes=LARGEST_MESSAGE - index,
            on_retry=self._count_retry,
            **options,
        )

    def _count_retry(self, event: RetryEvent) -> None:  # noqa: ARG002  what TeacherClient calls
        self._num_retries += 1


def prepare() -> Any:  # Any: what bench.workers.serve calls
    """One event loop for the length of the process: a channel belongs to the loop that it was opened in."""
    loop = asyncio.new_event_loop()
    client: Client | None = None

    def answer(request: Request) -> Mapping[str, object]:
        nonlocal client
        if request["do"] == "connect":
            client = Client(unpack(str(request["load"])))
            loop.run_until_complete(client.connect())
            return {}
        assert client is not None, "connect comes first"
        return loop.run_until_complete(client.run()).to_json()

    return answer


if __name__ == "__main__":
    serve(prepare)
