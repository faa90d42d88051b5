"""The HTTP side of the scripted teacher: it answers as docs/http.md says, out of the numbers that its gRPC side gives.

A script may come first: problems, silence, bytes of another program.
"""

# T = tokens of a response, N = scored positions, K = support size

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from preceptor.v1 import teacher_pb2
from preceptor.wire import (
    LogprobDtype,
    PositionStatus,
    SegmentationPolicy,
    TokenDtype,
    decode_logprobs,
    decode_token_ids,
    encode_token_ids,
)

from tests.unit.client.scripted_teacher import honest_answer

Json = Any  # Any: the leaves are whatever JSON holds

TEXTS = {21: " Oslo", 32: ".", 80: "\n", 5: "<0xF0>"}
"""Of some tokens; the others are called after their ids."""
RESPONSE_IDS = {" Oslo.\n": [21, 32, 80]}
"""How it cuts a response."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Refuses one call."""

    status: int
    detail: str = "scripted"
    reason: str = ""
    field: str | None = None
    retry_after_seconds: float | None = None

    def to_json(self) -> Json:
        return {
            "type": "about:blank",
            "title": "scripted",
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
            "field": self.field,
            "retry_after_seconds": self.retry_after_seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Answers one call with bytes that no teacher wrote."""

    content: bytes
    status: int = 200


@dataclass(frozen=True, kw_only=True)
class Hang:
    """Keeps the caller of one call waiting, then hangs up."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Dribble:
    """Begins to answer one call, and never comes to an end."""


@dataclass(frozen=True, kw_only=True)
class Lie:
    """Answers one call honestly but for one change."""

    change: Callable[[Json], None]


@dataclass
class ScriptedHttp:
    """Takes one step of the script per call, then answers honestly for ever."""

    script: list[Problem | Raw | Hang | Dribble | Lie] = field(default_factory=list)
    calls: list[tuple[str, Json]] = field(default_factory=list)
    """Paths, with what was asked there: a body, or a query."""
    records: list[Json] = field(default_factory=list)
    is_recording: bool = True

    def answer(self, path: str, asked: Json) -> Json:
        """What a good server says."""
        match path:
            case "/v1/info":
                return {"teachers": [TEACHER], "tokenizers": {}}
            case "/v1/topk":
                return topk(asked)
            case "/v1/stats":
                return STATS
            case "/v1/requests":
                new = [record for record in self.records if record["number"] > int(asked["after"])]
                last = self.records[-1]["number"] if self.records else 0
                return {"records": new[: int(asked["limit"])], "last": last, "is_recording": self.is_recording}
        raise AssertionError(f"nobody should ask for {path}")


TEACHER = {
    "name": "tutor",
    "revision": "r1",
    "engine": "fake",
    "model": "tiny",
    "dtype": "float32",
    "device": "cpu",
    "vocabulary_size": 97,
}
STATS = {
    "uptime_seconds": 60.5,
    "is_serving": True,
    "queue_groups": 3,
    "queue_tokens": 1200,
    "max_queue_tokens": 65536,
    "tokens_in_flight": 4096,
    "requests_total": 12345,
    "failed_total": 2,
    "positions_total": 99999,
    "positions_per_second": 512.25,
}


def record(number: int, **changes: Json) -> Json:
    """One entry of /v1/requests."""
    return {
        "number": number,
        "at": 1_700_000_000.0 + number,
        "transport": "grpc",
        "caller": "trainer-1",
        "request_id": f"step-1/{number}",
        "tokenizer_id": "tok",
        "adapter": "",
        "num_prompt_tokens": 12,
        "num_responses": 4,
        "num_positions": 128,
        "top_k": 32,
        "temperature": 1.0,
        "outcome": "ok",
        "mean_sampled_logprob": -0.8125,
        "preview": "The capital of Norway is",
        "total_ms": 41.25,
        **changes,
    }


@contextmanager
def serving_http(server: ScriptedHttp) -> Iterator[str]:
    """Serves on loopback until the block ends; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._reply(parts.path, dict(parse_qsl(parts.query)))

        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            self._reply(self.path, json.loads(self.rfile.read(length)))

        def _reply(self, path: str, asked: Json) -> None:
            server.calls.append((path, asked))
            step = server.script.pop(0) if server.script else None
            if isinstance(step, Hang):
                time.sleep(step.seconds)
                return
            if isinstance(step, Dribble):
                self._dribble()
                return
            status, content = 200, b""
            match step:
                case Problem():
                    status, content = step.status, json.dumps(step.to_json()).encode()
                case Raw():
                    status, content = step.status, step.content
                case _:
                    answer = server.answer(path, asked)
                    if step is not None:
                        step.change(answer)
                    content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _dribble(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "1000000")
            self.end_headers()
            # Until the caller has hung up.
            with suppress(OSError):
                while True:
                    self.wfile.write(b" ")
                    time.sleep(0.01)

        def log_message(self, format: str, *args: object) -> None:
            """Not to stderr, which a test may read."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        # A thread that still hangs ends with the test's process.
        listener.daemon_threads, listener.block_on_close = True, False
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_address[1]}"
        finally:
            listener.shutdown()
            thread.join()


def topk(body: Json) -> Json:
    """What /v1/topk answers: the columns of the gRPC side's honest answer, as lists."""
    answer = honest_answer(_request(body))
    responses = [
        _response(ids, answer, index) for index, ids in enumerate(_ids(response) for response in body["responses"])
    ]
    prompt_ids = decode_token_ids(answer.prompt_ids.data, answer.prompt_ids.dtype, field="prompt_ids").tolist()
    named = {id_ for one in responses for row in (*one["support_ids"], one["ids"]) for id_ in row}
    return {
        "request_id": "r",
        "teacher": answer.teacher,
        "revision": answer.revision,
        "adapter": answer.adapter,
        "tokenizer_id": answer.tokenizer_id,
        "top_k": answer.top_k,
        "temperature": answer.temperature,
        "segmentation": SegmentationPolicy(answer.segmentation).name.lower(),
        "prompt_ids": prompt_ids,
        "responses": responses,
        "texts": {str(id_): TEXTS.get(id_, f"t{id_}") for id_ in sorted(named)},
        "teacher_texts": {str(id_): f"t{id_}" for id_ in prompt_ids},
        "timings": {"decode_ms": 1.0, "queue_ms": 2.0, "forward_ms": 3.0, "total_ms": 6.5},
    }


def _request(body: Json) -> teacher_pb2.ScoreRequest:
    wire = [teacher_pb2.Response(ids=_packed(_ids(response))) for response in body["responses"]]
    policy = body.get("segmentation")
    return teacher_pb2.ScoreRequest(
        prompt=teacher_pb2.Prompt(text=teacher_pb2.TextPrompt(text="any")),
        responses=wire,
        top_k=body["top_k"],
        temperature=body["temperature"],
        teacher=body.get("teacher", ""),
        adapter=body.get("adapter", ""),
        logprob_dtype=teacher_pb2.LOGPROB_DTYPE_F32,
        segmentation=teacher_pb2.SegmentationPolicy.ValueType(SegmentationPolicy[policy.upper()] if policy else 0),
    )


def _packed(ids: Sequence[int]) -> teacher_pb2.TokenIds:
    return teacher_pb2.TokenIds(data=encode_token_ids(np.array(ids), TokenDtype.U16), dtype=teacher_pb2.TOKEN_DTYPE_U16)


def _ids(response: Json) -> list[int]:
    return list(response["ids"] if "ids" in response else RESPONSE_IDS[response["text"]])


def _response(ids: Sequence[int], answer: teacher_pb2.ScoreResponse, index: int) -> Json:
    scores, K = answer.responses[index], answer.top_k

    def numbers(data: bytes) -> list[float]:
        return [float(value) for value in decode_logprobs(data, LogprobDtype.F32, field="column")]

    support_ids = decode_token_ids(scores.support_ids, answer.token_dtype, field="support_ids")
    support_logprobs = np.array(numbers(scores.support_logprobs))
    return {
        "ids": list(ids),
        "status": [PositionStatus(status).name.lower() for status in scores.status],
        "positions": list(range(len(ids))),
        "sampled_logprobs": numbers(scores.sampled_logprobs),
        "sampled_ranks": [None] * len(ids),
        "log_tail_mass": numbers(scores.log_tail_mass),
        "entropies": numbers(scores.entropies),
        "support_ids": support_ids.reshape(-1, K).tolist(),
        "support_logprobs": support_logprobs.reshape(-1, K).tolist(),
        "candidate_ids": None,
        "candidate_logprobs": None,
        "student_logprobs": None,
        "teacher_ids": None,
        "teacher_rows": None,
        "unmapped_mass": 0.0,
        "digest": scores.digest.hex(),
    }
