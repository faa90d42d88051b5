"""A process that sends one large message when asked: python -m bench.service.large_client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import CALLER_METADATA_KEY

from bench.service.mutations import SERVICE
from bench.workers import Request, serve

OPTIONS = [("grpc.max_send_message_length", 2**31 - 1), ("grpc.max_receive_message_length", 2**31 - 1)]
VOCABULARY_SIZE = 63


def message(what: str, size: int, seed: int) -> bytes:
    """text: of `size` bytes. chat: of `size` messages. candidates: 1,023 at each of `size` positions of each of two
    responses; wide: the same of one."""
    if what == "text":
        prompt = pb.Prompt(text=pb.TextPrompt(text="lorem ipsum " * (size // 12)))
    elif what == "chat":
        turns = [pb.ChatMessage(role="assistant" if index % 2 else "user", content="hello") for index in range(size)]
        prompt = pb.Prompt(chat=pb.ChatPrompt(messages=turns))
    else:
        prompt = pb.Prompt(teacher_ids=_ids(1, 2, 3))
    if what in ("candidates", "wide"):
        rng = np.random.default_rng(seed)
        responses = [_with_candidates(rng, size) for _ in range(2 if what == "candidates" else 1)]
    else:
        responses = [pb.Response(ids=_ids(1, 2, 3))]
    request = pb.ScoreRequest(request_id=f"{what}-{seed}", prompt=prompt, responses=responses, top_k=8, temperature=1.0)
    return request.SerializeToString()


def _ids(*ids: int) -> pb.TokenIds:
    return pb.TokenIds(data=np.array(ids, dtype="<u2").tobytes(), dtype=pb.TOKEN_DTYPE_U16)


def _with_candidates(rng: np.random.Generator, num_positions: int) -> pb.Response:
    candidates = rng.integers(0, VOCABULARY_SIZE, (num_positions, 1023), dtype=np.uint16)
    return pb.Response(
        ids=_ids(*rng.integers(0, VOCABULARY_SIZE, num_positions)),
        candidates=pb.CandidateIds(
            ids=pb.TokenIds(data=candidates.tobytes(), dtype=pb.TOKEN_DTYPE_U16), num_per_position=1023
        ),
    )


async def send(address: str, payload: bytes, *, seconds: float, caller: str) -> dict[str, object]:
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call = channel.unary_unary(f"{SERVICE}Score", request_serializer=bytes, response_deserializer=bytes)
        started = time.monotonic()
        try:
            reply = await call(payload, timeout=seconds, metadata=((CALLER_METADATA_KEY, caller),))
            code, details, num_bytes = "OK", "", len(reply)
        except grpc.aio.AioRpcError as error:
            code, details, num_bytes = error.code().name, (error.details() or "")[:300], 0
        return {
            "code": code,
            "details": details,
            "seconds": time.monotonic() - started,
            "request_mib": len(payload) / 2**20,
            "reply_mib": num_bytes / 2**20,
        }


def prepare() -> Any:  # Any: what bench.workers.serve calls
    payload = b""

    def answer(request: Request) -> Mapping[str, object]:
        nonlocal payload
        if request["do"] == "make":
            payload = message(str(request["what"]), int(request["size"]), int(request["seed"]))
            return {"mib": len(payload) / 2**20}
        # Of a message's field that stands twice the last one counts.
        twin = pb.ScoreRequest(request_id="x" * 1000).SerializeToString() if request["do"] == "send twin" else b""
        seconds, caller = float(request["seconds"]), str(request["caller"])
        return asyncio.run(send(str(request["address"]), payload + twin, seconds=seconds, caller=caller))

    return answer


if __name__ == "__main__":
    serve(prepare)
