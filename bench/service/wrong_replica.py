"""A replica that answers wrong digests while a file exists.

python -m bench.service.wrong_replica TARGET FLAG ADDRESS_FILE hands every call on to a teacher, and changes the digests
of the answers to Score, as if other ids had been scored.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
from preceptor.v1 import teacher_pb2 as pb

LIMITS = [("grpc.max_send_message_length", 64 << 20), ("grpc.max_receive_message_length", 64 << 20)]
DIGEST_BYTES = 32
Handler = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class HandOn(grpc.GenericRpcHandler):
    """Any unary call, as bytes."""

    def __init__(self, channel: grpc.aio.Channel, flag: Path) -> None:
        self._channel, self._flag = channel, flag

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        async def hand_on(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            call = self._channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
            try:
                reply = bytes(await call(request, timeout=context.time_remaining()))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
            return _with_wrong_digests(reply) if method.endswith("/Score") and self._flag.exists() else reply

        return grpc.unary_unary_rpc_method_handler(hand_on, request_deserializer=bytes, response_serializer=bytes)


def _with_wrong_digests(reply: bytes) -> bytes:
    answer = pb.ScoreResponse.FromString(reply)
    for one in answer.responses:
        one.digest = bytes(DIGEST_BYTES)
    return answer.SerializeToString()


async def serve(target: str, flag: Path, address_file: Path) -> None:
    """Until killed."""
    async with grpc.aio.insecure_channel(target, options=LIMITS) as channel:
        server = grpc.aio.server(options=LIMITS)
        server.add_generic_rpc_handlers((HandOn(channel, flag),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        address_file.write_text(f"127.0.0.1:{port}")
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
