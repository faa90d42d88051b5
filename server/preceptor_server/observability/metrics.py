"""The server's metrics for Prometheus: an Observer of calls and batches, and the text of a scrape. Knows no HTTP.

Labels are bounded: tenants by TenantLabels, teachers to those that were hosted, reasons and methods to the first few.
What a caller calls itself is no label.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from threading import Lock

from preceptor_server.observability.batch_metrics import BatchMetrics
from preceptor_server.observability.call_metrics import CallMetrics
from preceptor_server.observability.event_loop import LoopWatch
from preceptor_server.observability.families import Distribution, Family, Histogram, ReadGauge, Values, render
from preceptor_server.observability.health import Health
from preceptor_server.observability.labels import UNKNOWN, BoundedNames, TenantLabels
from preceptor_server.observability.observer import Asker, BatchDone, BatchObserver, Outcome, Refusal
from preceptor_server.observability.process import ProcessMetrics
from preceptor_server.observability.rate_limited import RateLimited
from preceptor_server.observability.state_metrics import ReadState, StateMetrics, TeacherState

logger = RateLimited(logging.getLogger(__name__))

_DELAY_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PATIENCE_SECONDS = 0.25
"""How long a scrape waits for the event loop before it shows the queues as they were at the scrape before."""
_MAX_REASONS = 64


class Metrics:
    """An Observer of calls; `of_teacher` gives the observers of batches."""

    def __init__(self, *, health: Health, version: str, max_tenants: int = 1000) -> None:
        tenants, reasons = TenantLabels(max_tenants), BoundedNames(_MAX_REASONS)
        self._health = health
        self._lock = Lock()
        """Over every count and label: calls may be told of from several threads. A scrape's reading takes it not."""
        self._scraping = Lock()
        self._watch: LoopWatch | None = None
        self._readers: dict[str, ReadState] = {}
        self._teachers: set[str] = set()
        """All that have been hosted."""
        self._states: Mapping[str, TeacherState] = {}
        self._failures: Mapping[str, int] = {}
        self._calls = CallMetrics(tenants=tenants, reasons=reasons)
        self._batches = BatchMetrics(tenants=tenants, reasons=reasons)
        self._shown = StateMetrics(tenant_label=tenants.of)
        self._process = ProcessMetrics()
        self._delays = Histogram(
            "preceptor_event_loop_delay_seconds",
            "How late a timer of the event loop came, twice a second.",
            bounds=_DELAY_BOUNDS,
        )
        self._observer_failures = ReadGauge(
            "preceptor_observer_failures_total", "Errors of observers.", ("observer",), kind="counter"
        )
        self._build = Values(
            "preceptor_build_info", "1; its labels tell of the server.", ("version", "python"), kind="gauge"
        )
        self._build.at(version, platform.python_version()).value = 1

    @property
    def families(self) -> tuple[Family, ...]:
        """All of them, also those that have no value yet."""
        return (
            *(*self._calls.families, *self._batches.families, *self._shown.families),
            *(self._delays, self._observer_failures, self._build, *self._process.families),
        )

    @property
    def loop_delays(self) -> Distribution:
        """For the LoopWatch."""
        return self._delays.at()

    def watch(self, loop: LoopWatch) -> None:
        """States are read in this loop."""
        self._watch = loop

    def observe_failures(self, failures: Mapping[str, int]) -> None:
        """Of the Observers that this is one of."""
        self._failures = failures

    def host(self, teacher: str, read: ReadState) -> None:
        """`read` is called in the event loop, for each scrape: it must be quick, and return what does not change."""
        self._teachers.add(teacher)
        self._readers[teacher] = read

    def forget(self, teacher: str) -> None:
        """The teacher is hosted no more. Its counters stay."""
        self._readers.pop(teacher, None)

    def of_teacher(self, teacher: str) -> BatchObserver:
        """Counts the batches of one teacher."""
        return _TeacherBatches(self, teacher)

    def began(self, caller: Asker) -> None:
        with self._lock:
            self._calls.began(caller)

    def ended(self, outcome: Outcome) -> None:
        teacher = outcome.teacher if outcome.teacher in self._teachers else UNKNOWN
        with self._lock:
            self._calls.ended(outcome, teacher=teacher)

    def refused(self, refusal: Refusal) -> None:
        with self._lock:
            self._calls.refused(refusal)

    def batch_done(self, teacher: str, done: BatchDone) -> None:
        with self._lock:
            self._batches.batch_done(teacher, done)

    def render(self) -> bytes:
        """What a scrape gets, from any thread."""
        states = self._read_states()
        with self._scraping:
            self._states = states
            with self._lock:
                self._shown.show(states, serving=self._health.teachers)
            self._observer_failures.read({(name,): count for name, count in list(self._failures.items())})
            self._process.read()
            return render(self.families)

    def _read_states(self) -> Mapping[str, TeacherState]:
        if self._watch is None:
            return self._ask_teachers()
        states = self._watch.ask(self._ask_teachers, patience_seconds=_PATIENCE_SECONDS)
        return self._states if states is None else states

    def _ask_teachers(self) -> Mapping[str, TeacherState]:
        states: dict[str, TeacherState] = {}
        for teacher, read in list(self._readers.items()):
            try:
                states[teacher] = read()
            except Exception:  # a teacher that is just being replaced must not hide the others
                logger.warning("cannot read a teacher's state teacher=%s", teacher, exc_info=True)
        return states


class _TeacherBatches:
    """The batches of one teacher."""

    def __init__(self, metrics: Metrics, teacher: str) -> None:
        self._metrics = metrics
        self._teacher = teacher

    def batch_done(self, done: BatchDone) -> None:
        self._metrics.batch_done(self._teacher, done)
