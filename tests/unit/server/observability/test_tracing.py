"""What is sent to a collector. Needs preceptor[otel]; without a collector: test_no_tracing.py."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from preceptor_server.observability.config import ObserveConfig
from preceptor_server.observability.observatory import build_tracing
from preceptor_server.observability.tracing import Tracing, current_ids

from tests.unit.server.observability.events import batch_done, caller, outcome

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from preceptor_server.observability.otlp import OtlpTracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
NOT_SAMPLED = f"00-{TRACE}-{SPAN}-00"


class World:
    def __init__(self, *, share: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing: Tracing = OtlpTracing(self._exporter, version="1", share=share)

    def spans(self) -> dict[str, list[ReadableSpan]]:
        self.tracing.close(20)
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def linked(span: ReadableSpan) -> set[tuple[str, str]]:
    return {(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") for link in span.links}


def test_a_call_stands_below_its_callers_span_and_its_wait_below_it() -> None:
    world = World()
    with world.tracing.score(caller=caller(), teacher="teacher", traceparent=PARENT) as call:
        seen = current_ids()
        wait = world.tracing.queued()
        batch = world.tracing.batch([wait], teacher="teacher")
        batch.done(batch_done())
        call.ended(outcome())
    assert current_ids() is None
    spans = world.spans()
    [score], [queue], [forward] = (spans[f"preceptor.{name}"] for name in ("score", "queue", "batch"))
    assert ids(score)[0] == ids(queue)[0] == TRACE
    assert score.parent is not None
    assert f"{score.parent.span_id:016x}" == SPAN
    assert queue.parent is not None
    assert f"{queue.parent.span_id:016x}" == ids(score)[1]
    assert seen is not None
    assert (seen.trace_id, seen.span_id) == ids(score)
    assert forward.parent is None, "a batch belongs to no single call"
    assert linked(forward) == {ids(queue)}
    assert linked(queue) == {ids(forward)}


def test_attributes_follow_the_conventions_and_hold_no_text() -> None:
    world = World()
    with world.tracing.score(caller=caller(), teacher="teacher") as call:
        world.tracing.batch([world.tracing.queued()], teacher="teacher").done(batch_done())
        call.ended(outcome())
    spans = world.spans()
    assert dict(spans["preceptor.score"][0].attributes or {}) == {
        "gen_ai.operation.name": "score",
        "gen_ai.provider.name": "preceptor",
        "gen_ai.request.model": "teacher",
        "gen_ai.usage.input_tokens": 8,
        "preceptor.tenant": "acme",
        "preceptor.caller": "trainer-1",
        "preceptor.transport": "grpc",
        "preceptor.num_positions": 7,
        "preceptor.num_prompt_tokens": 3,
        "preceptor.num_response_tokens": 5,
        "preceptor.request_bytes": 1000,
        "preceptor.answer_bytes": 2000,
        "preceptor.queue_seconds": 0.02,
    }
    assert dict(spans["preceptor.batch"][0].attributes or {}) == {
        "gen_ai.request.model": "teacher",
        "preceptor.num_traced_groups": 1,
        "preceptor.num_groups": 3,
        "preceptor.num_tokens": 100,
        "preceptor.num_reused_tokens": 20,
        "preceptor.max_tokens": 100,
    }
    assert spans["preceptor.score"][0].resource.attributes["service.name"] == "preceptor"


def test_a_failure_is_an_error_with_its_reason() -> None:
    world = World()
    with world.tracing.score(caller=caller(), teacher="teacher") as call:
        wait = world.tracing.queued()
        wait.dropped("DEADLINE_PASSED")
        call.ended(outcome(reason="DEADLINE_PASSED"))
    spans = world.spans()
    for name in ("preceptor.score", "preceptor.queue"):
        [span] = spans[name]
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "DEADLINE_PASSED"
    assert "preceptor.batch" not in spans


def test_a_call_that_is_cancelled_ends_its_span() -> None:
    world = World()
    with pytest.raises(asyncio.CancelledError), world.tracing.score(caller=caller(), teacher="teacher"):
        raise asyncio.CancelledError
    [span] = world.spans()["preceptor.score"]
    assert (span.attributes or {})["error.type"] == "NO_ANSWER"


async def test_calls_at_once_keep_their_waits_apart_and_share_a_batch() -> None:
    world, waits = World(), []
    everyone_waits = asyncio.Barrier(3)

    async def call(name: str) -> None:
        with world.tracing.score(caller=caller(name), teacher="teacher") as span:
            await asyncio.sleep(0)
            waits.append(world.tracing.queued())
            await everyone_waits.wait()
            span.ended(outcome(name))

    async def batch() -> None:
        await everyone_waits.wait()
        world.tracing.batch(waits, teacher="teacher").done(batch_done())

    await asyncio.gather(call("a"), call("b"), batch())
    spans = world.spans()
    assert {ids(span)[0] for span in spans["preceptor.queue"]} == {ids(span)[0] for span in spans["preceptor.score"]}
    assert len({ids(span)[0] for span in spans["preceptor.score"]}) == 2
    [forward] = spans["preceptor.batch"]
    assert linked(forward) == {ids(span) for span in spans["preceptor.queue"]}


def test_a_wait_that_is_dropped_after_its_batch_began_stays_as_it_was() -> None:
    world = World()
    with world.tracing.score(caller=caller(), teacher="teacher"):
        wait = world.tracing.queued()
        batch = world.tracing.batch([wait], teacher="teacher")
        wait.dropped("CANCELLED")
        batch.done(batch_done(reason="ENGINE_FAILED"))
    spans = world.spans()
    assert spans["preceptor.queue"][0].status.status_code is not StatusCode.ERROR
    assert (spans["preceptor.batch"][0].attributes or {})["error.type"] == "ENGINE_FAILED"


@pytest.mark.parametrize(
    ("share", "traceparent", "is_traced"),
    [(0.0, "", False), (0.0, PARENT, True), (1.0, NOT_SAMPLED, False), (1.0, "", True), (1.0, "nonsense", True)],
)
def test_a_callers_own_decision_goes_before_the_share(share: float, traceparent: str, is_traced: bool) -> None:
    world = World(share=share)
    with world.tracing.score(caller=caller(), teacher="teacher", traceparent=traceparent) as call:
        assert (current_ids() is not None) == is_traced
        world.tracing.batch([world.tracing.queued()], teacher="teacher").done(batch_done())
        call.ended(outcome())
    assert set(world.spans()) == ({"preceptor.score", "preceptor.queue", "preceptor.batch"} if is_traced else set())


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    received: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_collector_receives_what_is_left_at_the_end() -> None:
    with collector() as (endpoint, received):
        tracing = build_tracing(ObserveConfig(otlp_endpoint=endpoint), version="1.2.3")
        with tracing.score(caller=caller(), teacher="teacher", traceparent=PARENT) as call:
            call.ended(outcome())
        tracing.close(20)
    request = ExportTraceServiceRequest.FromString(b"".join(received))
    [span] = request.resource_spans[0].scope_spans[0].spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("preceptor.score", TRACE, SPAN)


def test_a_collector_that_is_gone_neither_fails_a_call_nor_holds_up_the_end() -> None:
    with socket.socket() as silent:  # bound, and nobody listens
        silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        tracing = build_tracing(ObserveConfig(otlp_endpoint=endpoint), version="1")
        with tracing.score(caller=caller(), teacher="teacher") as call:
            call.ended(outcome())
        tracing.close(0.1)
