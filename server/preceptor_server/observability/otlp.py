"""Traces by OpenTelemetry, sent to a collector over OTLP/HTTP. Imported only where observe.otlp_endpoint is set.

Attributes follow the semantic conventions for generative AI where these have a name (gen_ai.*, error.type); the others
are preceptor.*. The process's global tracer is left alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from preceptor_server.observability.observer import OK, Asker, BatchDone, Outcome
from preceptor_server.observability.tracing import BatchSpan, CallSpan, QueueSpan, SpanIds, showing

_MAX_LINKS = 1024
_MAX_TEXT = 128
_MAX_HEADER = 512
_PROPAGATOR = TraceContextTextMapPropagator()
NO_ANSWER = "NO_ANSWER"
"""The error of a call whose block ended without an outcome."""


class OtlpTracing:
    """A Tracing that sends spans."""

    def __init__(self, exporter: SpanExporter, *, version: str, share: float = 1.0) -> None:
        """`share` of the calls that come without a trace of their own are traced; those with one as their callers
        decided."""
        self._exporter = exporter
        self._processor: SpanProcessor = BatchSpanProcessor(exporter)
        resource = Resource.create({"service.name": "preceptor", "service.version": version})
        self._calls = self._tracer(resource, ParentBased(TraceIdRatioBased(share)), version)
        # A batch is traced if any of its calls is: whether that is so is decided here, and not by its own id.
        self._batches = self._tracer(resource, ALWAYS_ON, version)

    def _tracer(self, resource: Resource, sampler: Sampler, version: str) -> Tracer:
        provider = TracerProvider(
            resource=resource, sampler=sampler, span_limits=SpanLimits(max_links=_MAX_LINKS), shutdown_on_exit=False
        )
        provider.add_span_processor(self._processor)
        return provider.get_tracer("preceptor_server", version)

    @contextmanager
    def score(self, *, caller: Asker, teacher: str, traceparent: str = "", tracestate: str = "") -> Iterator[CallSpan]:
        carrier = {"traceparent": traceparent[:_MAX_HEADER], "tracestate": tracestate[:_MAX_HEADER]}
        span = self._calls.start_span(
            "preceptor.score",
            context=_PROPAGATOR.extract(carrier, otel_context.Context()),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": "score",
                "gen_ai.provider.name": "preceptor",
                "gen_ai.request.model": teacher[:_MAX_TEXT],
                "preceptor.tenant": caller.tenant.name[:_MAX_TEXT],
                "preceptor.caller": caller.name[:_MAX_TEXT],
                "preceptor.transport": caller.transport,
            },
        )
        call = _Call(span)
        token = otel_context.attach(trace.set_span_in_context(span, otel_context.Context()))
        try:
            with showing(_ids_of(span)):
                yield call
        finally:
            otel_context.detach(token)
            call.close()

    def queued(self) -> QueueSpan:
        return _Wait(self._calls.start_span("preceptor.queue"))

    def batch(self, waits: Iterable[QueueSpan], *, teacher: str) -> BatchSpan:
        traced = [wait for wait in waits if isinstance(wait, _Wait)]
        contexts = [wait.span.get_span_context() for wait in traced]
        links = [Link(context) for context in contexts if context.trace_flags.sampled]
        if not links:
            for wait in traced:
                wait.close()
            return _Batch(None)
        span = self._batches.start_span(
            "preceptor.batch",
            context=otel_context.Context(),
            kind=SpanKind.INTERNAL,
            links=links,
            attributes={"gen_ai.request.model": teacher, "preceptor.num_traced_groups": len(links)},
        )
        for wait in traced:
            wait.span.add_link(span.get_span_context())
            wait.close()
        return _Batch(span)

    def close(self, seconds: float) -> None:
        # The last export tries a collector that is gone for as long as it likes; its exporter's end stops it.
        ending = threading.Thread(target=self._processor.shutdown, name="otlp shutdown", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            self._exporter.shutdown()


class _Call:
    def __init__(self, span: Span) -> None:
        self._span = span
        self._is_told = False

    def ended(self, outcome: Outcome) -> None:
        self._is_told = True
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": outcome.num_prompt_tokens + outcome.num_response_tokens,
                "preceptor.num_positions": outcome.num_positions,
                "preceptor.num_prompt_tokens": outcome.num_prompt_tokens,
                "preceptor.num_response_tokens": outcome.num_response_tokens,
                "preceptor.request_bytes": outcome.request_bytes,
                "preceptor.answer_bytes": outcome.answer_bytes,
            }
        )
        if outcome.queue_seconds is not None:
            self._span.set_attribute("preceptor.queue_seconds", outcome.queue_seconds)
        _set_reason(self._span, outcome.reason)

    def close(self) -> None:
        if not self._is_told:
            _set_reason(self._span, NO_ANSWER)
        self._span.end()


class _Wait:
    def __init__(self, span: Span) -> None:
        self.span = span

    def dropped(self, reason: str) -> None:
        if self.span.is_recording():
            _set_reason(self.span, reason)
        self.close()

    def close(self) -> None:
        if self.span.is_recording():
            self.span.end()


class _Batch:
    def __init__(self, span: Span | None) -> None:
        self._span = span

    def done(self, done: BatchDone) -> None:
        if self._span is None:
            return
        self._span.set_attributes(
            {
                "preceptor.num_groups": done.num_groups,
                "preceptor.num_tokens": done.num_tokens,
                "preceptor.num_reused_tokens": done.num_reused_tokens,
                "preceptor.max_tokens": done.max_tokens,
            }
        )
        _set_reason(self._span, done.reason)
        self._span.end()


def _set_reason(span: Span, reason: str) -> None:
    if reason != OK:
        span.set_attribute("error.type", reason)
        span.set_status(Status(StatusCode.ERROR))


def _ids_of(span: Span) -> SpanIds | None:
    context = span.get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    return SpanIds(trace_id=trace.format_trace_id(context.trace_id), span_id=trace.format_span_id(context.span_id))
