"""Servers with OpenAI's API on this machine, scripted: each question is answered by a function of the test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Asked = Mapping[str, Any]  # Any: whatever was sent as JSON


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent back."""

    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    """Nothing is sent until the test is over."""
    breaks_off: bool = False
    """The connection is closed after half of the content."""


def said(text: str | None, *, finish_reason: str | None = "stop") -> Answer:
    """An ordinary answer; it does for both ways of asking."""
    choice = {"message": {"role": "assistant", "content": text}, "text": text, "finish_reason": finish_reason}
    return Answer(content=json.dumps({"choices": [choice]}).encode())


Script = Callable[[Asked], Answer]


@dataclass
class ScriptedServer:
    """One server."""

    script: Script
    url: str = ""
    asked: list[tuple[str, Asked]] = field(default_factory=list)
    """Path and body of every question."""
    keys: list[str | None] = field(default_factory=list)
    num_at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(script: Script) -> Iterator[ScriptedServer]:
    """The kernel chooses the port."""
    state = ScriptedServer(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with state.lock:
                state.asked.append((self.path, asked))
                state.keys.append(self.headers["authorization"])
                state.num_at_once += 1
                state.most_at_once = max(state.most_at_once, state.num_at_once)
            answer = state.script(asked)
            with state.lock:
                state.num_at_once -= 1
            if answer.hangs:
                state.is_over.wait()
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            half = len(answer.content) // 2
            self.wfile.write(answer.content[:half] if answer.breaks_off else answer.content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def unused_port() -> int:
    """One where nobody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return int(server.server_address[1])
