"""A process that sends malformed messages: python -m bench.service.fuzz_client. Counts what they are answered with."""

from __future__ import annotations

import asyncio
import random
import struct
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import grpc

from bench.service.mutations import Mutator
from bench.workers import Request, serve

IN_FLIGHT = 32
CALL_SECONDS = 60.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RAW_SECONDS = 2.0
NO_ANSWER = "no answer"


class Fuzzer:
    """Sends until it has sent enough, or the time is over."""

    def __init__(self, address: str, *, seed: int, num_messages: int, seconds: float) -> None:
        self._address, self._num_left = address, num_messages
        self._until = time.monotonic() + seconds
        self._mutator = Mutator(seed)
        self.codes: Counter[str] = Counter()
        self.bad: dict[str, str] = {}
        """Of each code that must not be: how the first such message was made, and what was said."""

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._address) as channel:
            await asyncio.gather(*(self._loop(channel) for _ in range(IN_FLIGHT)))

    async def _loop(self, channel: grpc.aio.Channel) -> None:
        while self._num_left > 0 and time.monotonic() < self._until:
            self._num_left -= 1
            method, way, message = self._mutator.next()
            call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
            try:
                await call(message, timeout=CALL_SECONDS)
                self.codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                name = error.code().name
                self.codes[name] += 1
                if name in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"):
                    self.bad.setdefault(name, f"{method} {way} {message[:80].hex()}: {(error.details() or '')[:200]}")


async def send_raw(address: str, *, seed: int, num_connections: int) -> int:
    """Connections that speak no gRPC, no HTTP/2, or HTTP/2 with broken frames. Returns how many the server ended."""
    rng, ended = random.Random(seed), 0
    host, _, port = address.rpartition(":")
    for index in range(num_connections):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(_raw(rng, index % 4))
            await asyncio.wait_for(_drained(reader), RAW_SECONDS)
            ended += 1
        except TimeoutError:
            pass  # the server waits for more: only counted
        except OSError:
            ended += 1
        finally:
            writer.transport.abort()
    return ended


async def _drained(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


def _raw(rng: random.Random, kind: int) -> bytes:
    """Anything; an HTTP/1 request; the preface and then anything; frames of a call whose message length is a lie."""
    if kind == 0:
        return rng.randbytes(200)
    if kind == 1:
        return b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    if kind == 2:
        return PREFACE + rng.randbytes(200)
    prefix = struct.pack(">BI", rng.choice((0, 1, 7)), rng.choice((0, 5, 2**31, 2**32 - 1)))
    return PREFACE + _frame(4, 0, 0, b"") + _frame(1, 4, 1, _headers()) + _frame(0, 1, 1, prefix + b"abc")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _headers() -> bytes:
    """HPACK literals without indexing (RFC 7541, section 6.2.2) of a call of Score."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/preceptor.v1.TeacherService/Score",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def answer(request: Request) -> Mapping[str, object]:
    """`do` is "fuzz" or "raw"."""
    address, seed = str(request["address"]), int(request["seed"])
    if request["do"] == "raw":
        return {"ended": asyncio.run(send_raw(address, seed=seed, num_connections=int(request["count"])))}
    fuzzer = Fuzzer(address, seed=seed, num_messages=int(request["count"]), seconds=float(request["seconds"]))
    asyncio.run(fuzzer.run())
    return {"codes": dict(fuzzer.codes), "bad": fuzzer.bad}


def prepare() -> Any:  # Any: what bench.workers.serve calls
    return answer


if __name__ == "__main__":
    serve(prepare)
