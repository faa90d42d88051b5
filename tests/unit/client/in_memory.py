"""A transport that answers as the scripted teacher does, without a server, and counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import cast

from google.protobuf.message import Message
from preceptor.v1 import teacher_pb2
from preceptor_client.transport import Metadata, TransportError

from tests.unit.client.scripted_teacher import ScriptedTeacher, honest_answer

Answer = Callable[[Message, None], Awaitable[Message]]


class InMemory:
    """Honest answers, unless it shall fail or take its time; each address has a teacher of its own."""

    def __init__(self) -> None:
        self.failure: TransportError | None = None
        self.seconds: dict[str, float] = {}
        """How long a score takes, by address."""
        self.asked: list[tuple[str, str]] = []
        """Method and address."""
        self.metadata: list[dict[str, str]] = []
        self.num_at_once = 0
        self.most_at_once = 0
        self.num_cancelled = 0
        self.teachers: dict[str, ScriptedTeacher] = {}
        self.is_closed = False

    @property
    def num_calls(self) -> int:
        return len(self.asked)

    def teacher(self, address: str) -> ScriptedTeacher:
        return self.teachers.setdefault(address, ScriptedTeacher())

    async def call(
        self, method: str, request: Message, *, address: str, metadata: Metadata, timeout_seconds: float
    ) -> Message:
        self.asked.append((method, address))
        self.metadata.append(dict(metadata))
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        try:
            if method == "Score":
                await asyncio.sleep(self.seconds.get(address, 0.0))
            if self.failure is not None:
                raise self.failure
            if isinstance(request, teacher_pb2.ScoreRequest):
                answer = honest_answer(request)
                answer.revision = self.teacher(address).revision
                return answer
            return await cast("Answer", getattr(self.teacher(address), method))(request, None)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_at_once -= 1

    async def close(self) -> None:
        self.is_closed = True
