from __future__ import annotations

import sys

import pytest
from preceptor_server.errors import StartupError
from preceptor_server.observability.config import ObserveConfig
from preceptor_server.observability.observatory import build_tracing
from preceptor_server.observability.tracing import NO_TRACING, Tracing, current_ids

from tests.unit.server.observability.events import batch_done, caller, outcome


def test_without_a_collector_nothing_is_traced() -> None:
    tracing: Tracing = build_tracing(ObserveConfig(), version="1")
    assert tracing is NO_TRACING
    with tracing.score(caller=caller(), teacher="t", traceparent=f"00-{'a' * 32}-{'b' * 16}-01") as call:
        assert current_ids() is None
        wait = tracing.queued()
        tracing.batch([wait], teacher="t").done(batch_done())
        wait.dropped("CANCELLED")
        call.ended(outcome())
    tracing.close(0)


def test_a_collector_without_the_library_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StartupError, match=r"pip install 'preceptor\[otel\]'"):
        build_tracing(ObserveConfig(otlp_endpoint="http://127.0.0.1:1/v1/traces"), version="1")
