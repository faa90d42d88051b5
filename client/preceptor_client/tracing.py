"""OpenTelemetry spans of the calls, and the traceparent that joins them to the server's. Nothing without the library.

Attributes follow OpenTelemetry's conventions for generative AI where one fits. They hold numbers and names, never text,
ids of tokens or keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from preceptor_client.request import GroupRequest
from preceptor_client.transport import Metadata, entries
from preceptor_client.types import GroupScores

try:
    from opentelemetry import propagate, trace
except ImportError:  # optional: nothing is traced then
    propagate = trace = None  # type: ignore[assignment, unused-ignore]  # the types of modules that may be there

_NAME = "preceptor.client"


def trace_entries() -> Metadata:
    """The metadata by which a server finds the span that is going on: traceparent, and what else is configured."""
    if propagate is None:
        return ()
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return entries(carrier)


class ScoreSpan:
    """The span of one score; of none where nothing is traced."""

    def __init__(self, span: Any = None) -> None:  # Any: a span of a library that may not be there
        self._span = span

    def answered(self, scores: GroupScores, *, is_cached: bool) -> None:
        """What was read for it, and by which weights."""
        if self._span is None:
            return
        num_response_tokens = sum(len(one.status_T) for one in scores.responses)
        self._span.set_attributes(
            {
                "gen_ai.response.model": scores.teacher,
                "gen_ai.usage.input_tokens": len(scores.prompt_ids) + num_response_tokens,
                "preceptor.revision": scores.revision,
                "preceptor.num_scored_positions": sum(len(one.positions_N) for one in scores.responses),
                "preceptor.is_cached": is_cached,
            }
        )


@contextmanager
def score_span(group: GroupRequest) -> Iterator[ScoreSpan]:
    """A client's span around one score, retries included."""
    if trace is None:
        yield ScoreSpan()
        return
    attributes: dict[str, Any] = {  # Any: what OpenTelemetry takes
        "gen_ai.operation.name": "score",
        "gen_ai.provider.name": "preceptor",
        "gen_ai.request.model": group.teacher,
        "preceptor.adapter": group.adapter,
        "preceptor.num_responses": len(group.responses_T),
        "preceptor.top_k": group.top_k,
    }
    with trace.get_tracer(_NAME).start_as_current_span(
        f"score {group.teacher}".rstrip(),
        kind=trace.SpanKind.CLIENT,
        attributes=attributes,
        # Its message may quote what a server wrote.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield ScoreSpan(span)
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR)
            raise
