"""Whatever the description allows, and what it does not, is asked: no 5xx, and no answer that is not described.

A few hundred cases, always the same. `make test-schemathesis` asks more than ten thousand.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from preceptor_server.edges.http.app import routed_app
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.http.describing import describe
from preceptor_server.edges.http.state import HttpState
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.engines.fake import fake_arguments
from tests.integration.http.serving import BothWays, running_both

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "40"))
"""Of each of nine operations."""
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
SEEN: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module")
def both(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    named = f'{{"student": "{tiny_folder}"}}'
    arguments = [*fake_arguments(), "--engine.tokenizer", str(tiny_folder), "--http.tokenizers", named]
    arguments += ["--http.record", "50", "--http.share", "1"]
    with running_both(tmp_path_factory.mktemp("described"), *arguments) as running:
        yield running
        assert running.server.process.poll() is None, "the server died"
        assert "unforeseen error" not in running.server.log.read_text()


schema = schemathesis.openapi.from_dict(describe(routed_app(HttpState(HttpConfig(port=0)))))


def every_answer_is_described_and_none_is_the_servers_fault(operation: str) -> Callable[..., None]:
    """A test of its own name for each operation: Schemathesis gives those of one function one id, and pytest-xdist runs
    one test of an id."""

    @schema.include(name=operation).parametrize()
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def test(both: BothWays, case: schemathesis.Case[Any]) -> None:
        if case.query and "wait_seconds" in case.query:
            case.query["wait_seconds"] = 0 if isinstance(case.query["wait_seconds"], int | float) else "x"
        answer = case.call(base_url=both.url, timeout=60)
        SEEN[(f"{case.method} {case.path}", answer.status_code)] += 1
        case.validate_response(answer, checks=CHECKS)

    described: Callable[..., None] = test
    return described


test_topk = every_answer_is_described_and_none_is_the_servers_fault("POST /v1/topk")
test_align = every_answer_is_described_and_none_is_the_servers_fault("POST /v1/align")
test_info = every_answer_is_described_and_none_is_the_servers_fault("GET /v1/info")
test_stats = every_answer_is_described_and_none_is_the_servers_fault("GET /v1/stats")
test_health = every_answer_is_described_and_none_is_the_servers_fault("GET /healthz")
test_readiness = every_answer_is_described_and_none_is_the_servers_fault("GET /readyz")
test_metrics = every_answer_is_described_and_none_is_the_servers_fault("GET /metrics")
test_requests = every_answer_is_described_and_none_is_the_servers_fault("GET /v1/requests")
test_request = every_answer_is_described_and_none_is_the_servers_fault("GET /v1/requests/{number}")


def test_enough_was_asked_and_some_of_it_was_answered() -> None:
    for (operation, status), number in sorted(SEEN.items()):
        print(f"{number:6} {status} {operation}")
    print(f"{sum(SEEN.values()):6} in all")
    assert sum(SEEN.values()) >= 3 * EXAMPLES
    paths = schema.raw_schema["paths"]
    described = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert described <= {operation for operation, _ in SEEN}
    for operation in ("POST /v1/topk", "POST /v1/align", "GET /v1/requests", "GET /v1/info"):
        assert SEEN[(operation, 200)] > 0, operation
    assert SEEN[("POST /v1/topk", 400)] > 0
