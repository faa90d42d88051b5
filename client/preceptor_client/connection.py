"""One address and the calls to it: channel, caller's name, limits, retries. Knows nothing of what is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from preceptor.wire import CALLER_METADATA_KEY

from preceptor_client.channel import checked_address, checked_caller, open_channel
from preceptor_client.errors import MessageTooLargeError
from preceptor_client.retry import Cure, RetryEvent, RetryingCall, RetryPolicy

if TYPE_CHECKING:  # exists in the stubs' types alone
    from preceptor.v1.teacher_pb2_grpc import TeacherServiceAsyncStub

RequestT = TypeVar("RequestT", bound=Message)
AnswerT = TypeVar("AnswerT", bound=Message)


class Connection:
    """Calls one server from inside one event loop; opened by the first call."""

    def __init__(
        self,
        address: str,
        *,
        attempt_timeout_seconds: float | None,
        retry: RetryPolicy,
        caller: str,
        max_message_bytes: int,
        on_retry: Callable[[RetryEvent], None] | None,
        is_patient: bool = True,
    ) -> None:
        """Unless `is_patient`, a call gives up at the first passing failure instead of waiting and asking again."""
        refuse_unless_positive("attempt_timeout_seconds", attempt_timeout_seconds)
        refuse_unless_positive("max_message_bytes", max_message_bytes)
        self.address = checked_address(address)
        self._attempt_timeout_seconds = attempt_timeout_seconds
        self._retry = retry
        self._metadata = ((CALLER_METADATA_KEY, checked_caller(caller)),)
        self._max_message_bytes = max_message_bytes
        self._on_retry = on_retry
        self._is_patient = is_patient
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

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
        """The answer to `request`, after retries. `smaller` says how to make a message smaller that is too large. A
        call that `changes_server` has all the time there is, and is repeated only where nobody was reached."""
        request_bytes = request.ByteSize()
        if request_bytes > self._max_message_bytes:
            raise MessageTooLargeError(
                f"the request has {request_bytes} bytes, more than max_message_bytes={self._max_message_bytes}: "
                f"{smaller}, or raise max_message_bytes here and on the server"
            )

        async def attempt(seconds: float) -> AnswerT:
            return await method(self._stub())(request, timeout=seconds, metadata=self._metadata)

        call = RetryingCall(
            address=self.address,
            policy=self._retry,
            timeout_seconds=timeout_seconds,
            attempt_timeout_seconds=None if changes_server else self._attempt_timeout_seconds,
            only_unavailable=changes_server,
            max_message_bytes=self._max_message_bytes,
            request_bytes=request_bytes,
            smaller=smaller,
            on_retry=self._on_retry,
            cure=cure,
            is_patient=self._is_patient,
        )
        return await call.run(attempt)

    def is_connected(self) -> bool:
        """Whether a connection stands at this moment; if not, one is tried in the background."""
        if self._channel is None:
            return False
        return self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        """Cancels what is in flight. Closing twice is fine."""
        self._is_closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _stub(self) -> TeacherServiceAsyncStub:
        if self._is_closed:
            raise RuntimeError(f"the client of {self.address} is closed")
        if self._channel is None:
            # Opened on first use: a channel belongs to the loop that runs when it is made.
            self._channel = open_channel(self.address, max_message_bytes=self._max_message_bytes)
        return TeacherServiceStub(self._channel)


def refuse_unless_positive(name: str, value: float | None) -> None:
    """Raises ValueError, naming the setting."""
    if value is not None and not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
