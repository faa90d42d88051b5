"""What carries a call to a server and brings its answer, as a seam: tests answer calls without any server.

Knows the names of the calls, and nothing of what they mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import grpc
from google.protobuf.message import Message

from preceptor_client.status import Failure

if TYPE_CHECKING:  # exists in the stubs' types alone
    from preceptor.v1.teacher_pb2_grpc import TeacherServiceAsyncStub

Metadata = tuple[tuple[str, str], ...]


class Transport(Protocol):
    """Answers the calls of a TeacherClient in the place of a network. In memory, for instance:

        class TwoWords:
            async def call(self, method, request, *, address, metadata, timeout_seconds):
                match method:
                    case "GetInfo":
                        teacher = teacher_pb2.TeacherInfo(name="tutor", revision="r1", vocabulary_size=2)
                        return teacher_pb2.GetInfoResponse(server_version="0.1.0", teachers=[teacher])
                    case _:
                        raise TransportError(grpc.StatusCode.UNIMPLEMENTED, f"no {method} here")

            async def close(self):
                pass

        async with TeacherClient("nobody:1", transport=TwoWords()) as client:
            info = await client.info()

    Answers are messages of `preceptor.v1.teacher_pb2`, and are verified like those of a server.
    """

    async def call(
        self, method: str, request: Message, *, address: str, metadata: Metadata, timeout_seconds: float
    ) -> Message:
        """The answer of `method`: GetInfo, RegisterTokenizer, Score or UpdateWeights. Raises TransportError."""

    async def close(self) -> None:
        """Called once, by the client's own close."""


class TransportError(Exception):
    """A transport's call failed, as a server's would: by its code it is retried, or raised as a PreceptorError."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str = "",
        *,
        reason: str = "",
        field: str = "",
        retry_after_seconds: float = 0.0,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.failure = Failure(
            code=code, message=message, reason=reason, field=field, retry_after_seconds=retry_after_seconds
        )


class TransportStub:
    """A transport in the shape of a stub of gRPC's."""

    def __init__(self, transport: Transport, *, address: str) -> None:
        self._transport = transport
        self._address = address

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Message]]:
        async def call(request: Message, *, timeout: float, metadata: Metadata) -> Message:
            try:
                async with asyncio.timeout(timeout):
                    return await self._transport.call(
                        method, request, address=self._address, metadata=metadata, timeout_seconds=timeout
                    )
            except TimeoutError as error:
                raise TransportError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer in {timeout:.1f} s") from error

        return call


def as_stub(transport: Transport, *, address: str) -> TeacherServiceAsyncStub:
    """What calls `transport` where a stub is expected."""
    return cast("TeacherServiceAsyncStub", TransportStub(transport, address=address))


def entries(carrier: Mapping[str, str]) -> Metadata:
    """A mapping as metadata, whose keys are lower case."""
    return tuple((key.lower(), value) for key, value in carrier.items())
