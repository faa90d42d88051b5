"""One address and the calls to it: channel, caller's name and key, limits, retries. Knows nothing of what is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import Message
from preceptor.v1 import teacher_pb2
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from preceptor.wire import CALLER_METADATA_KEY

from preceptor_client.access import Access, is_loopback
from preceptor_client.breaker import CircuitBreaker
from preceptor_client.channel import (
    checked_address,
    checked_caller,
    checked_value,
    open_channel,
    split_address,
    without_scheme,
)
from preceptor_client.errors import MessageTooLargeError
from preceptor_client.gate import Gate
from preceptor_client.retry import Cure, RetryEvent, RetryPolicy
from preceptor_client.retrying_call import RetryingCall
from preceptor_client.tls import channel_credentials
from preceptor_client.tracing import trace_entries
from preceptor_client.transport import Metadata, Transport, TransportError, as_stub

if TYPE_CHECKING:  # exists in the stubs' types alone
    from preceptor.v1.teacher_pb2_grpc import TeacherServiceAsyncStub

OBJECTIVE_METADATA_KEY = "preceptor-objective"
"""Request metadata under which a client says what its calls are for; the server makes a priority of it."""
DEFAULT_MAX_CONCURRENT_CALLS = 64
DEFAULT_MAX_BYTES_IN_FLIGHT = 256 << 20
MAX_CONTROL_CALLS = 8
"""Calls at once that are no scores. They do not wait behind those: a score may need one of them to go on."""
_NO_ACCESS = Access()

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
        access: Access = _NO_ACCESS,
        objective: str = "",
        max_concurrent_calls: int = DEFAULT_MAX_CONCURRENT_CALLS,
        max_bytes_in_flight: int = DEFAULT_MAX_BYTES_IN_FLIGHT,
        transport: Transport | None = None,
    ) -> None:
        """Unless `is_patient`, a call gives up at the first passing failure instead of waiting and asking again. Raises
        ValueError where a key would travel in plain text."""
        refuse_unless_positive("attempt_timeout_seconds", attempt_timeout_seconds)
        refuse_unless_positive("max_message_bytes", max_message_bytes)
        refuse_unless_positive("max_concurrent_calls", max_concurrent_calls)
        refuse_unless_positive("max_bytes_in_flight", max_bytes_in_flight)
        self.address = without_scheme(checked_address(address))
        self._is_secure = access.is_secure(address)
        access.check(self.address, host=split_address(address)[0], is_secure=self._is_secure or transport is not None)
        self._access = access
        self._attempt_timeout_seconds = attempt_timeout_seconds
        self._retry = retry
        self._metadata: Metadata = ((CALLER_METADATA_KEY, checked_caller(caller)),)
        if objective:
            self._metadata += ((OBJECTIVE_METADATA_KEY, checked_value("objective", objective)),)
        self._gate = Gate(max_calls=max_concurrent_calls, max_bytes=max_bytes_in_flight)
        self._control_gate = Gate(max_calls=MAX_CONTROL_CALLS, max_bytes=max_bytes_in_flight)
        self._breaker = CircuitBreaker(retry)
        self._transport = transport
        self._max_message_bytes = max_message_bytes
        self._on_retry = on_retry
        self._is_patient = is_patient
        self._channel: grpc.aio.Channel | None = None
        self._was_connected = False
        self._num_losses = 0
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
            # Of this very moment: a key may have been replaced since, and a span is the call's own.
            metadata = (*self._metadata, *self._access.authorization(), *trace_entries())
            try:
                return await method(self._stub())(request, timeout=seconds, metadata=metadata)
            except (grpc.aio.AioRpcError, TransportError) as error:
                code = error.failure.code if isinstance(error, TransportError) else error.code()
                if code is grpc.StatusCode.UNAVAILABLE:
                    self._num_losses += 1
                raise

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
            gate=self._gate if isinstance(request, teacher_pb2.ScoreRequest) else self._control_gate,
            breaker=self._breaker,
        )
        return await call.run(attempt)

    def is_connected(self) -> bool:
        """Whether a connection stands at this moment; if not, one is tried in the background."""
        if self._transport is not None:
            return not self._is_closed
        if self._channel is None:
            return False
        is_connected = self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY
        if self._was_connected and not is_connected:
            self._num_losses += 1
        self._was_connected = is_connected
        return is_connected

    @property
    def num_losses(self) -> int:
        """How often the connection was found lost, by whom it was looked at or by a call."""
        self.is_connected()
        return self._num_losses

    async def close(self) -> None:
        """Cancels what is in flight. Closing twice is fine."""
        self._is_closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _stub(self) -> TeacherServiceAsyncStub:
        if self._is_closed:
            raise RuntimeError(f"the client of {self.address} is closed")
        if self._transport is not None:
            return as_stub(self._transport, address=self.address)
        if self._channel is None:
            # Opened on first use: a channel belongs to the loop that runs when it is made.
            access = self._access
            self._channel = open_channel(
                self.address,
                max_message_bytes=self._max_message_bytes,
                credentials=channel_credentials(ca=access.ca, cert=access.cert) if self._is_secure else None,
                # It is to stay on this machine: a proxy would see the key, and reach a loopback address of its own.
                may_use_proxy=not is_loopback(split_address(self.address)[0]),
            )
        return TeacherServiceStub(self._channel)


def refuse_unless_positive(name: str, value: float | None) -> None:
    """Raises ValueError, naming the setting."""
    if value is not None and not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
