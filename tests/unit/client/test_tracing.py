"""OpenTelemetry spans of scores. In processes of their own: a tracer provider is one for a process's life."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import asyncio, json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import grpc
from preceptor_client import BlockingTeacherClient, PreceptorError, TeacherClient, Text, TransportError
from tests.unit.client.in_memory import InMemory

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
transport = InMemory()
with trace.get_tracer("test").start_as_current_span("train.step"):
    with BlockingTeacherClient("nobody:1", transport=transport, api_key="prk_1_secret") as client:
        client.submit(Text("very private"), [[7, 8], [9]], top_k=2, teacher="tutor").result()
        transport.failure = TransportError(grpc.StatusCode.INVALID_ARGUMENT, "very private too")
        try:
            client.score(Text("very private"), [[7]], top_k=2)
        except PreceptorError:
            pass
spans = [json.loads(span.to_json()) for span in exporter.get_finished_spans()]
print(json.dumps({"spans": spans, "sent": [one.get("traceparent") for one in transport.metadata]}))
"""
WITHOUT = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from preceptor_client import TeacherClient, TeacherIds, tracing
from tests.unit.client.in_memory import InMemory

async def run():
    transport = InMemory()
    async with TeacherClient("nobody:1", transport=transport) as client:
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    print(tracing.trace, sorted(transport.metadata[0]))

asyncio.run(run())
"""


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def traced() -> dict[str, Any]:  # Any: JSON
    if importlib.util.find_spec("opentelemetry") is None:
        pytest.skip("needs opentelemetry-sdk")
    found: dict[str, Any] = json.loads(run(PROGRAM))
    return found


def test_a_score_is_a_clients_span_below_the_callers(traced: dict[str, Any]) -> None:
    good, bad, step = traced["spans"]
    assert (good["name"], good["kind"], bad["name"], step["name"]) == (
        *("score tutor", "SpanKind.CLIENT"),
        *("score", "train.step"),
    )
    assert good["parent_id"] == bad["parent_id"] == step["context"]["span_id"]
    assert good["attributes"] == {
        "gen_ai.operation.name": "score",
        "gen_ai.provider.name": "preceptor",
        "gen_ai.request.model": "tutor",
        "gen_ai.response.model": "tutor",
        # Three ids of the prompt, three of the responses.
        "gen_ai.usage.input_tokens": 6,
        "preceptor.adapter": "",
        "preceptor.is_cached": False,
        "preceptor.num_responses": 2,
        "preceptor.num_scored_positions": 3,
        "preceptor.revision": "r1",
        "preceptor.top_k": 2,
    }


def test_a_score_that_fails_says_by_which_error_and_no_more(traced: dict[str, Any]) -> None:
    _, bad, _ = traced["spans"]
    assert (bad["attributes"]["error.type"], bad["status"]) == ("InvalidRequestError", {"status_code": "ERROR"})
    assert bad["events"] == []


def test_the_server_is_told_the_span(traced: dict[str, Any]) -> None:
    good, bad, _ = traced["spans"]
    expected = [f"00-{one['context']['trace_id'][2:]}-{one['context']['span_id'][2:]}" for one in (good, bad)]
    # The flags that follow are the library's.
    assert [sent.rpartition("-")[0] for sent in traced["sent"]] == expected


def test_no_span_holds_text_or_a_key(traced: dict[str, Any]) -> None:
    shown = json.dumps(traced)
    assert "private" not in shown
    assert "secret" not in shown


def test_without_the_library_nothing_is_traced_and_nothing_is_missing() -> None:
    assert run(WITHOUT) == "None ['preceptor-caller']\n"
