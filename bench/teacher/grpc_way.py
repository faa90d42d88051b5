"""Our server, asked as a trainer asks it: TeacherClient, all groups at once, answers verified."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from preceptor_client import TeacherClient, TeacherIds
from preceptor_client.connection import Connection
from preceptor_client.replica import Replica
from preceptor_client.replicas import Replicas
from preceptor_client.retry import Cure, RetryPolicy
from preceptor_client.types import GroupScores

from bench.teacher.outcome import Outcome, RequestTimes, shares_of
from bench.teacher.servers import RunningServer
from bench.teacher.workloads import Group, Job

if TYPE_CHECKING:  # exists in the stubs' types alone
    from preceptor.v1.teacher_pb2_grpc import TeacherServiceAsyncStub

TIMEOUT_SECONDS = 3600.0

RequestT = TypeVar("RequestT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)


class MeteredConnection(Connection):
    """Adds up what answers weigh."""

    num_bytes = 0

    async def call(
        self,
        method: Callable[[TeacherServiceAsyncStub], grpc.aio.UnaryUnaryMultiCallable[RequestT, AnswerT]],
        request: RequestT,
        *,
        timeout_seconds: float,
        smaller: str,
        cure: Cure | None = None,
        changes_server: bool = False,
    ) -> AnswerT:
        answer = await super().call(
            method,
            request,
            timeout_seconds=timeout_seconds,
            smaller=smaller,
            cure=cure,
            changes_server=changes_server,
        )
        self.num_bytes += answer.ByteSize()
        return answer


class MeteredClient(TeacherClient):
    """A client that knows what it received."""

    def __init__(self, address: str) -> None:
        super().__init__(address, timeout_seconds=TIMEOUT_SECONDS)
        retry = RetryPolicy()
        self.metered = MeteredConnection(
            address,
            attempt_timeout_seconds=None,
            retry=retry,
            caller="bench",
            max_message_bytes=64 << 20,
            on_retry=None,
        )
        self._replicas = Replicas([Replica(self.metered)], retry=retry, on_retry=None)


class GrpcWay:
    """Any engine behind our server."""

    def __init__(self, server: RunningServer) -> None:
        self._address = server.address
        self.command = server.command
        self.tree = server.tree

    def run(self, job: Job) -> Outcome:
        return asyncio.run(self._measure(job))

    async def _measure(self, job: Job) -> Outcome:
        groups = job.groups()
        async with MeteredClient(self._address) as client:
            await client.info()  # connects, as a trainer has long since
            client.metered.num_bytes = 0
            started = time.perf_counter()
            answers = await asyncio.gather(*(_score(client, group, job.top_k) for group in groups))
            seconds = time.perf_counter() - started
        sampled = np.concatenate([one.sampled_logprobs_N for scores, _ in answers for one in scores.responses])
        return Outcome(
            seconds=seconds,
            latencies=[latency for _, latency in answers],
            num_positions=len(sampled),
            reply_bytes=client.metered.num_bytes,
            mean_sampled_logprob=float(sampled.mean()),
            stage_shares=shares_of([_times_of(scores, latency) for scores, latency in answers]),
        )


async def _score(client: TeacherClient, group: Group, top_k: int) -> tuple[GroupScores, float]:
    started = time.perf_counter()
    scores = await client.score(TeacherIds(group.prompt_ids), list(group.responses), top_k=top_k)
    return scores, time.perf_counter() - started


def _times_of(scores: GroupScores, latency: float) -> RequestTimes:
    timings = scores.timings
    return RequestTimes(
        latency=latency,
        decode=timings.decode_ms / 1000,
        queue=timings.queue_ms / 1000,
        forward=timings.forward_ms / 1000,
        server=timings.total_ms / 1000,
    )
