"""A process that asks with any key, or none, over any channel: python -m bench.service.access_client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from preceptor.v1 import teacher_pb2 as pb

from bench.service.mutations import SERVICE
from bench.workers import Request, serve

CALL_SECONDS = 20.0
LIMITS = [("grpc.max_send_message_length", 2**31 - 1), ("grpc.use_local_subchannel_pool", 1)]


def message(method: str, *, teacher: str, num_bytes: int) -> bytes:
    """A request that is answered where it is allowed; with `num_bytes` of an id that nobody needs."""
    if method == "UpdateWeights":
        return pb.UpdateWeightsRequest(teacher=teacher, path="new").SerializeToString()
    if method != "Score":
        return b""
    ids = pb.TokenIds(data=np.array([1, 2, 3], dtype="<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)
    return pb.ScoreRequest(
        request_id="a" + "x" * num_bytes,
        teacher=teacher,
        prompt=pb.Prompt(teacher_ids=ids),
        responses=[pb.Response(ids=ids)],
        top_k=4,
        temperature=1.0,
    ).SerializeToString()


class Asker:
    """Keeps its channel from one question to the next, so that a key can be revoked on an open connection."""

    def __init__(self) -> None:
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}

    async def ask(self, request: Request) -> dict[str, object]:
        address, ca, key = (str(request.get(name, "")) for name in ("address", "ca", "key"))
        method = str(request.get("method", "Score"))
        payload = message(method, teacher=str(request.get("teacher", "")), num_bytes=int(request.get("num_bytes", 0)))
        channel = self._channel(address, ca)
        call = channel.unary_unary(SERVICE + method, request_serializer=bytes, response_deserializer=bytes)
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        codes: Counter[str] = Counter()
        details = ""
        for _ in range(int(request.get("count", 1))):
            try:
                await call(payload, timeout=CALL_SECONDS, metadata=metadata)
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
                details = (error.details() or "")[:200]
        return {"codes": dict(codes), "details": details}

    def _channel(self, address: str, ca: str) -> grpc.aio.Channel:
        if (address, ca) not in self._channels:
            credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes()) if ca else None
            self._channels[address, ca] = (
                grpc.aio.secure_channel(address, credentials, options=LIMITS)
                if credentials
                else grpc.aio.insecure_channel(address, options=LIMITS)
            )
        return self._channels[address, ca]


def prepare() -> Any:  # Any: what bench.workers.serve calls
    loop = asyncio.new_event_loop()
    asker = Asker()

    def answer(request: Request) -> Mapping[str, object]:
        return loop.run_until_complete(asker.ask(request))

    return answer


if __name__ == "__main__":
    serve(prepare)
