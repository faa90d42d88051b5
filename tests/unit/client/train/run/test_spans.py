"""Traces of a step: which span is whose child, in the trainer's thread and in the client's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, Unpack

import pytest
from preceptor_client import BlockingTeacherClient, StudentIds
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.run import spans
from preceptor_client.types import GroupScores, Prompt

from tests.unit.client.scripted_teacher import ScriptedTeacher, serving
from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.runs import Runs, Settings
from tests.unit.client.train.tiny import tiny_student


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # Any: the library may not be there
    """Keeps what ended."""
    trace = pytest.importorskip("opentelemetry.trace")
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield kept
    provider.shutdown()


def _tree(exporter: Any) -> list[tuple[str, str]]:
    """Name and parent's name of each span, in the order in which they ended."""
    ended = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in ended}
    return [(span.name, names[span.parent.span_id] if span.parent else "") for span in ended]


class Noting(FakeScorer):
    """Notes under which span it is asked."""

    def submit(self, prompt: Prompt, responses: Any, **options: Unpack[ScoreOptions]) -> Future[GroupScores]:
        with spans.TRACE.get_tracer("test").start_as_current_span("asked"):
            return super().submit(prompt, responses, **options)


def test_step_holds_rollout_score_and_learn_and_teachers_are_asked_under_score(
    settings: Settings, exporter: Any
) -> None:
    runs = Runs(settings, Noting(teacher=tiny_student(seed=1)))
    try:
        runs.trainer().train_step()
    finally:
        runs.close()
    tree = _tree(exporter)
    assert [one for one in tree if one[0] != "asked"] == [
        ("rollout", "train.step"),
        ("score", "train.step"),
        ("learn", "train.step"),
        ("train.step", ""),
    ]
    assert [one for one in tree if one[0] == "asked"] == [("asked", "score")] * 3
    (step,) = (span for span in exporter.get_finished_spans() if span.name == "train.step")
    assert dict(step.attributes) == {"preceptor.train.step": 1}
    begins = {span.name: span.start_time for span in exporter.get_finished_spans()}
    ends = {span.name: span.end_time for span in exporter.get_finished_spans()}
    assert begins["rollout"] <= begins["score"] <= ends["rollout"] <= ends["score"] <= begins["learn"]


def test_step_that_fails_ends_its_spans(settings: Settings, exporter: Any) -> None:
    scorer = FakeScorer(teacher=tiny_student(seed=1), error_at=lambda index: RuntimeError("lost"))
    runs = Runs(settings, scorer)
    try:
        with pytest.raises(RuntimeError, match="lost"):
            runs.trainer().train_step()
    finally:
        runs.close()
    assert [name for name, _ in _tree(exporter)] == ["rollout", "score", "train.step"]
    ended = exporter.get_finished_spans()
    assert [dict(span.attributes).get("error.type") for span in ended] == [None, None, "RuntimeError"]
    assert [span.status.status_code.name for span in ended] == ["UNSET", "UNSET", "ERROR"]
    assert all("lost" not in span.to_json() for span in ended), "what an error says may be text of the data"


async def test_clients_span_is_a_child_of_score_although_its_thread_is_another(exporter: Any) -> None:
    import asyncio

    def ask(address: str) -> None:
        span = spans.StepSpan()
        with BlockingTeacherClient(address, timeout_seconds=30) as client, span.step(1), span.part("rollout"):
            with span.asking():
                future = client.submit(StudentIds([5]), [[6, 7]], top_k=4, teacher="tutor")
            future.result(30)

    async with serving(ScriptedTeacher()) as address:
        await asyncio.to_thread(ask, address)
    assert ("score tutor", "score") in _tree(exporter)


def test_without_the_library_a_step_is_done_without_spans(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "TRACE", None)
    runs = Runs(settings, FakeScorer(teacher=tiny_student(seed=1)))
    try:
        assert runs.trainer().train_step()["step"] == 1
    finally:
        runs.close()
