"""A gRPC server that hands every call on to a teacher server as it is, and keeps the score requests: what was sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from preceptor.v1 import teacher_pb2
from preceptor.wire import decode_score_mask, decode_token_ids

_NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_SCORE = "/preceptor.v1.TeacherService/Score"
AskedToken = tuple[tuple[int, ...], int]
"""A token that was to be scored, behind all ids that stood before it."""


@dataclass(slots=True)
class WireTap:
    """Answers at `address` as the teacher does."""

    address: str
    requests: list[teacher_pb2.ScoreRequest] = field(default_factory=list)

    def asked_tokens(self) -> list[AskedToken]:
        """Every token that a mask on the wire, or its absence, asked about. The prompts are ids."""
        found: list[AskedToken] = []
        for request in self.requests:
            assert request.prompt.WhichOneof("kind") == "student_ids"
            prompt = _ids(request.prompt.student_ids)
            for response in request.responses:
                ids = _ids(response.ids)
                mask_T = np.ones(len(ids), np.bool_)
                if response.score_mask:
                    mask_T = decode_score_mask(response.score_mask, num_tokens=len(ids), field="score_mask")
                found += [((*prompt, *ids[:place]), ids[place]) for place in np.flatnonzero(mask_T)]
        return found


@contextmanager
def tapped(address: str) -> Iterator[WireTap]:
    """A tap before the server at this address, for the length of the block."""
    server = grpc.server(ThreadPoolExecutor(8), options=_NO_LIMIT)
    tap = WireTap("")
    with grpc.insecure_channel(address, options=_NO_LIMIT) as channel:
        server.add_generic_rpc_handlers((_HandsOn(channel, on_score=tap.requests.append),))
        tap.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield tap
        finally:
            server.stop(grace=None).wait()


class _HandsOn(grpc.GenericRpcHandler):
    """Bytes in, bytes out: nothing of a message is lost on the way."""

    def __init__(self, channel: grpc.Channel, *, on_score: Callable[[teacher_pb2.ScoreRequest], None]) -> None:
        self._channel = channel
        self._on_score = on_score

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(details.method)

        def hand_on(message: bytes, context: grpc.ServicerContext) -> bytes:
            if details.method == _SCORE:
                self._on_score(teacher_pb2.ScoreRequest.FromString(message))
            try:
                return call(message, timeout=context.time_remaining())
            except grpc.RpcError as error:
                metadata: Any = error.trailing_metadata()  # Any: grpc's stubs type it as one thing here, another there
                context.set_trailing_metadata(metadata or ())
                context.abort(error.code(), error.details() or "")
                raise

        return grpc.unary_unary_rpc_method_handler(hand_on)


def _ids(column: teacher_pb2.TokenIds) -> tuple[int, ...]:
    return tuple(decode_token_ids(column.data, column.dtype, field="ids").tolist())
