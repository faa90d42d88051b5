"""A process that writes groups into a stream and reads nothing: python -m bench.service.stream_client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from preceptor.v1 import teacher_pb2 as pb

from bench.service.mutations import SERVICE
from bench.workers import Request, serve

NUM_RESPONSES, LENGTH, TOP_K = 16, 100, 256
"""An answer of 1.6 MB each: K ids of 2 bytes and logprobs of 2."""


def group(index: int) -> bytes:
    rng = np.random.default_rng(index)

    def ids(length: int) -> pb.TokenIds:
        return pb.TokenIds(data=rng.integers(0, 250, length).astype("<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)

    request = pb.ScoreRequest(
        request_id=f"unread-{index}",
        prompt=pb.Prompt(teacher_ids=ids(8)),
        responses=[pb.Response(ids=ids(LENGTH)) for _ in range(NUM_RESPONSES)],
        top_k=TOP_K,
        temperature=1.0,
    )
    return _as_first_field(request.SerializeToString())


def _as_first_field(message: bytes) -> bytes:
    """A ScoreStreamRequest of commits that had one: its only field is a ScoreRequest."""
    size, varint = len(message), bytearray()
    while size > 0x7F:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x0a" + bytes([*varint, size]) + message


async def write(address: str, *, count: int, seconds: float) -> dict[str, object]:
    """As many as the server takes in that time."""
    num_written, code, started = 0, "OPEN", time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        stream = channel.stream_stream(f"{SERVICE}ScoreStream", request_serializer=bytes, response_deserializer=bytes)()
        try:
            async with asyncio.timeout(seconds):
                for index in range(count):
                    await stream.write(group(index))
                    num_written += 1
                # All are written: time for the answers that nobody reads.
                await asyncio.sleep(min(10.0, max(0.0, seconds - (time.monotonic() - started))))
        except TimeoutError:
            code = "BLOCKED"
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            code = (await stream.code()).name
        if stream.done():
            code = (await stream.code()).name
        stream.cancel()
    return {"num_written": num_written, "code": code, "seconds": time.monotonic() - started}


def prepare() -> Any:  # Any: what bench.workers.serve calls
    def answer(request: Request) -> Mapping[str, object]:
        return asyncio.run(
            write(str(request["address"]), count=int(request["count"]), seconds=float(request["seconds"]))
        )

    return answer


if __name__ == "__main__":
    serve(prepare)
