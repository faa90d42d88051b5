"""Stands before every gRPC method: who asks, may they, how much is read at once, and what an error becomes.

A method of the TeacherService is read here and not by gRPC: a request is only taken off the connection once its caller
is known and there is room for it, bytes that are no message are the caller's mistake, and large ones are decoded in a
thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message

from preceptor_server.callers import Caller
from preceptor_server.edges.failures import failure_of
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.edges.grpc.intake import Intake
from preceptor_server.edges.grpc.servicer import ServedCall
from preceptor_server.edges.grpc.sizes import off_loop
from preceptor_server.edges.identity import Identity, RefusalObserver, notes_of
from preceptor_server.errors import DeadlinePassedError, InvalidRequestError
from preceptor_server.serving import Notes
from preceptor_server.tenants.rights import require_right
from preceptor_server.tenants.tenant import Right

Context = grpc.aio.ServicerContext[Any, Any]  # Any: of whatever method
Handler: TypeAlias = Any
"""grpc.RpcMethodHandler: its fields are typed for the blocking API, and as if each might be None."""
Behaviour = Callable[[Any, Any], Any]
"""A method of a servicer, of whatever kind."""

SERVICE = "/preceptor.v1.TeacherService/"
RIGHTS: Mapping[str, Right | None] = {
    f"{SERVICE}GetInfo": None,
    f"{SERVICE}RegisterTokenizer": Right.REGISTER,
    f"{SERVICE}Score": Right.SCORE,
    f"{SERVICE}UpdateWeights": Right.UPDATE_WEIGHTS,
}
"""What a method needs besides a valid key."""
DECODERS: Mapping[str, Callable[[Any], object]] = {f"{SERVICE}Score": decode_score_request}
"""What the servicer takes in the place of a message, which may be large: it is not kept while it is answered."""
OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""Asked without a key: by whoever balances load, and by tools. They say nothing that the proto does not."""

_MAX_OPEN_BYTES = 4096
"""Of a message to these, which name a service or a symbol. A watch keeps the name for as long as it lasts."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of all services."""

    def __init__(self, identity: Identity, intake: Intake, *, observer: RefusalObserver | None = None) -> None:
        self._identity = identity
        self._intake = intake
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED
            return handler
        if method in RIGHTS:
            # As a stream of requests on this side alone, which is the same on the wire: so that reading is ours.
            return grpc.stream_unary_rpc_method_handler(self._served(method, handler))
        assert method.startswith(OPEN_SERVICES), f"{method} has no right in RIGHTS"
        return _checked(handler)

    def _served(self, method: str, handler: Handler) -> Behaviour:
        async def serve(_: object, context: Context) -> bytes:
            caller: Caller | None = None
            try:
                headers = _headers(context)
                caller = self._identity.caller_of(headers, peer=str(context.peer()), transport="grpc")
                if (right := RIGHTS[method]) is not None:
                    require_right(caller.tenant, right)
                return await self._serve(method, handler, caller, context, notes=notes_of(headers))
            except Exception as error:  # noqa: BLE001  the edge: every error becomes a status, unforeseen ones are logged
                if self._observer is not None:
                    peer = self._identity.peer_name(str(context.peer()))
                    self._observer.refused(error, caller=caller, peer=peer, method=method, transport="grpc")
                status = failure_of(error).to_status()
            # Not above: gRPC keeps what is raised here, and with it the error, whose frames hold the request, until
            # Python looks for cycles.
            await context.abort_with_status(status)
            raise AssertionError("gRPC raises where a call is aborted")

        return serve

    async def _serve(self, method: str, handler: Handler, caller: Caller, context: Context, *, notes: Notes) -> bytes:
        _refuse_if_late(context)
        decode = _decoder(handler, DECODERS.get(method))
        with ExitStack() as held, ExitStack() as arriving:
            request = await self._intake.take(
                context, tenant=caller.tenant, decode=decode, held=held, arriving=arriving
            )
            left = context.time_remaining()
            call = ServedCall(caller=caller, timeout_seconds=left, notes=notes, arrived=arriving.close)
            answering = handler.unary_unary(request, call)
            del request  # what is large is let go of by whoever answers it
            answer: Message = await answering
            return await off_loop(handler.response_serializer, answer, num_bytes=answer.ByteSize())


def _headers(context: Context) -> dict[str, str]:
    """Of a name that is sent twice the first counts, as over HTTP: a proxy may add its own behind it."""
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        headers.setdefault(str(name), str(value))
    return headers


def _refuse_if_late(context: Context) -> None:
    left = context.time_remaining()
    if left is not None and left <= 0:
        raise DeadlinePassedError("the deadline passed before the call was read")


def _decoder(handler: Handler, decode: Callable[[Any], object] | None) -> Callable[[bytes], object]:
    """Makes of bytes what the handler takes: a message, or what `decode` makes of that."""

    def decoded(data: bytes) -> object:
        try:
            message: Message = handler.request_deserializer(data)
        except (DecodeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(
                "request", f"the bytes are no message: {error}", reason="MALFORMED_MESSAGE"
            ) from error
        del data  # the message has copies of what it needs, and the call those of what it needs
        return message if decode is None else decode(message)

    return decoded


class _Malformed:
    """Stands for bytes that are no message, or far more of them than one has."""


def _checked(handler: Handler) -> Handler:
    """Another service's handler, which ends in INVALID_ARGUMENT where gRPC would log a traceback, and where a stranger
    would have it keep megabytes."""

    def deserialize(data: bytes) -> object:
        if len(data) > _MAX_OPEN_BYTES:
            return _Malformed()
        try:
            return handler.request_deserializer(data)
        except (DecodeError, ValueError, RecursionError):
            return _Malformed()

    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are no message")

    if handler.unary_unary is not None:

        async def unary_unary(request: object, context: Context) -> object:
            if isinstance(request, _Malformed):
                await refuse(context)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(unary_unary, deserialize, handler.response_serializer)
    if handler.unary_stream is not None:

        async def unary_stream(request: object, context: Context) -> None:
            if isinstance(request, _Malformed):
                await refuse(context)
            await handler.unary_stream(request, context)

        return grpc.unary_stream_rpc_method_handler(unary_stream, deserialize, handler.response_serializer)
    assert handler.stream_stream is not None, "no service here has a method of the fourth kind"

    async def stream_stream(requests: Any, context: Context) -> Any:  # Any: streams of the service's own messages
        async def whole() -> Any:
            async for request in requests:
                if isinstance(request, _Malformed):
                    await refuse(context)
                yield request

        async for answer in handler.stream_stream(whole(), context):
            yield answer

    return grpc.stream_stream_rpc_method_handler(stream_stream, deserialize, handler.response_serializer)
