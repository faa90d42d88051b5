"""Asks a teacher server for scores: the async client, and its blocking twin. numpy in, numpy out, no torch.

Owns one address. `request` checks what is asked, `retry` repeats it, `messages` and `verify` read the answer.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import grpc
from preceptor.v1 import teacher_pb2
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from preceptor.wire import CALLER_METADATA_KEY, LogprobDtype

from preceptor_client import messages
from preceptor_client.channel import checked_address, checked_caller, open_channel
from preceptor_client.errors import MessageTooLargeError
from preceptor_client.request import ScoreMask, ScoreOptions, TokenSequence, check_group
from preceptor_client.retry import RetryEvent, RetryingCall, RetryPolicy
from preceptor_client.types import GroupScores, Prompt, ServerInfo

if TYPE_CHECKING:  # exists in the stubs' types alone
    from preceptor.v1.teacher_pb2_grpc import TeacherServiceAsyncStub

__all__ = ["BlockingTeacherClient", "RetryEvent", "RetryPolicy", "ScoreOptions", "TeacherClient"]

DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
_DEFAULT_RETRY = RetryPolicy()

ResultT = TypeVar("ResultT")


class TeacherClient:
    """One teacher server, from inside an event loop. May be shared by any number of tasks of that loop."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 60.0,
        attempt_timeout_seconds: float | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        caller: str = "",
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        on_retry: Callable[[RetryEvent], None] | None = None,
    ) -> None:
        """`timeout_seconds` covers all attempts of a call. An attempt that outlasts `attempt_timeout_seconds` is
        abandoned and repeated; None leaves it all the time there is."""
        _refuse_unless_positive("timeout_seconds", timeout_seconds)
        _refuse_unless_positive("attempt_timeout_seconds", attempt_timeout_seconds)
        _refuse_unless_positive("max_message_bytes", max_message_bytes)
        self._address = checked_address(address)
        self._timeout_seconds = timeout_seconds
        self._attempt_timeout_seconds = attempt_timeout_seconds
        self._retry = retry
        self._metadata = ((CALLER_METADATA_KEY, checked_caller(caller)),)
        self._max_message_bytes = max_message_bytes
        self._on_retry = on_retry
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    async def info(self, *, include_tokenizer: bool = False, timeout_seconds: float | None = None) -> ServerInfo:
        """What the server hosts, and its limits; with each teacher's tokenizer.json (megabytes) when asked."""
        request = teacher_pb2.GetInfoRequest(include_tokenizer=include_tokenizer)

        async def attempt(seconds: float) -> teacher_pb2.GetInfoResponse:
            return await self._stub().GetInfo(request, timeout=seconds, metadata=self._metadata)

        return messages.decode_info(await self._call(attempt, request.ByteSize(), timeout_seconds))

    async def score(
        self,
        prompt: Prompt,
        responses: Sequence[TokenSequence],
        *,
        top_k: int,
        temperature: float = 1.0,
        teacher: str = "",
        adapter: str = "",
        tokenizer_id: str = "",
        score_masks: Sequence[ScoreMask | None] | None = None,
        logprob_dtype: LogprobDtype = LogprobDtype.F16,
        batch_invariant: bool = False,
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> GroupScores:
        """The teacher's top-K at every position of the responses, verified. `proto/preceptor/v1/teacher.proto`
        describes the arguments; `timeout_seconds` replaces the client's own for this call."""
        group = check_group(
            prompt,
            request_id=secrets.token_hex(16) if request_id is None else request_id,
            teacher=teacher,
            adapter=adapter,
            tokenizer_id=tokenizer_id,
            responses=responses,
            score_masks=score_masks,
            top_k=top_k,
            temperature=temperature,
            logprob_dtype=logprob_dtype,
            batch_invariant=batch_invariant,
        )
        request = messages.encode_group(group)

        async def attempt(seconds: float) -> teacher_pb2.ScoreResponse:
            return await self._stub().Score(request, timeout=seconds, metadata=self._metadata)

        return messages.decode_scores(await self._call(attempt, request.ByteSize(), timeout_seconds), group=group)

    async def close(self) -> None:
        """Cancels what is in flight and closes the connection. Closing twice is fine."""
        self._is_closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, attempt: Callable[[float], Awaitable[ResultT]], request_bytes: int, timeout_seconds: float | None
    ) -> ResultT:
        _refuse_unless_positive("timeout_seconds", timeout_seconds)
        if request_bytes > self._max_message_bytes:
            raise MessageTooLargeError(
                f"the request has {request_bytes} bytes, more than max_message_bytes={self._max_message_bytes}: "
                "send fewer responses per group, or raise max_message_bytes here and on the server"
            )
        call = RetryingCall(
            address=self._address,
            policy=self._retry,
            timeout_seconds=self._timeout_seconds if timeout_seconds is None else timeout_seconds,
            attempt_timeout_seconds=self._attempt_timeout_seconds,
            max_message_bytes=self._max_message_bytes,
            request_bytes=request_bytes,
            on_retry=self._on_retry,
        )
        return await call.run(attempt)

    def _stub(self) -> TeacherServiceAsyncStub:
        if self._is_closed:
            raise RuntimeError(f"the client of {self._address} is closed")
        if self._channel is None:
            # Opened on first use: a channel belongs to the loop that runs when it is made.
            self._channel = open_channel(self._address, max_message_bytes=self._max_message_bytes)
        return TeacherServiceStub(self._channel)


class BlockingTeacherClient:
    """The same client for code without an event loop: a thread of its own runs one. May be shared between threads."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 60.0,
        attempt_timeout_seconds: float | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        caller: str = "",
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        on_retry: Callable[[RetryEvent], None] | None = None,
    ) -> None:
        """Arguments as for `TeacherClient`. `on_retry` is called in the client's thread: it must not wait for it."""
        self._client = TeacherClient(
            address,
            timeout_seconds=timeout_seconds,
            attempt_timeout_seconds=attempt_timeout_seconds,
            retry=retry,
            caller=caller,
            max_message_bytes=max_message_bytes,
            on_retry=on_retry,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"preceptor {address}", daemon=True)
        self._thread.start()

    def info(self, *, include_tokenizer: bool = False, timeout_seconds: float | None = None) -> ServerInfo:
        """As `TeacherClient.info`."""
        call = self._client.info(include_tokenizer=include_tokenizer, timeout_seconds=timeout_seconds)
        return _wait(self._start(call))

    def score(self, prompt: Prompt, responses: Sequence[TokenSequence], **options: Unpack[ScoreOptions]) -> GroupScores:
        """As `TeacherClient.score`."""
        return _wait(self.submit(prompt, responses, **options))

    def submit(
        self, prompt: Prompt, responses: Sequence[TokenSequence], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        """Starts a score and returns at once. Cancelling the future cancels the call, also at the server."""
        return self._start(self._client.score(prompt, responses, **options))

    def close(self) -> None:
        """Cancels what is in flight, closes the connection and ends the thread. Closing twice is fine."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all_and_close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, call: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:  # Any: a coroutine's unused channels
        if self._loop.is_closed():
            call.close()
            raise RuntimeError("the client is closed")
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    async def _cancel_all_and_close(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.close()


def _wait(future: Future[ResultT]) -> ResultT:
    try:
        return future.result()
    finally:
        # Interrupted while waiting (Ctrl-C): nobody will read the answer.
        future.cancel()


def _refuse_unless_positive(name: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
