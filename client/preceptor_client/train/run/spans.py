"""Traces of a run: a span for each step, with its rollout, score and learn inside. Nothing without OpenTelemetry.

    train.step
    ├── rollout     the student writes
    ├── score       teachers are asked; the client's spans are its children
    └── learn       the update

Teachers are asked while the student still writes, so that `rollout` and `score` overlap. The library
(opentelemetry-api) is not a dependency: a run that is started with it and an SDK has the spans.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_NAME = "preceptor.train"
_STEP = "preceptor.train.step"
_SILENT = {"record_exception": False, "set_status_on_exception": False}
"""An error's message may quote a prompt: spans hold its type alone."""


def _load() -> Any:  # Any: a module that may not be there
    try:
        return import_module("opentelemetry.trace")
    except ImportError:
        return None


TRACE = _load()
"""None where the library is not installed."""


class StepSpan:
    """The spans of a step that is going on."""

    def __init__(self) -> None:
        self._score: Any = None  # Any: a span of a library that may not be there
        self._context: Any = None

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """`train.step`, for the length of the block; ends what was begun in it."""
        if TRACE is None:
            yield
            return
        tracer = TRACE.get_tracer(_NAME)
        with tracer.start_as_current_span("train.step", attributes={_STEP: step}, **_SILENT) as span:
            self._context = TRACE.set_span_in_context(span)
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(TRACE.StatusCode.ERROR)
                raise
            finally:
                self.answered()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """`rollout` or `learn`, for the length of the block."""
        if TRACE is None:
            yield
            return
        with TRACE.get_tracer(_NAME).start_as_current_span(name, context=self._context, **_SILENT):
            yield

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Makes `score` the parent of what the block asks teachers; it begins with the first such block. The client
        carries it into its own thread: a call runs there in the context of the code that submitted it."""
        if TRACE is None:
            yield
            return
        if self._score is None:
            self._score = TRACE.get_tracer(_NAME).start_span("score", context=self._context)
        with TRACE.use_span(self._score, end_on_exit=False, **_SILENT):
            yield

    def answered(self) -> None:
        """Ends `score`."""
        if self._score is not None:
            self._score.end()
            self._score = None
