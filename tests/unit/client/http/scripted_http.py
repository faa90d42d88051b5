"""The HTTP side of the scripted teacher: it answers as docs/http.md says, out of the numbers that its gRPC side gives.

A script may come first: problems, silence, bytes of another program.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from tests.unit.client.http.scripted_topk import Json, topk


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
