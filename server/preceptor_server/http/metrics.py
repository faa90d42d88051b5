"""Prometheus: what was asked and how long it took, by transport; the queue; this process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.serving import Caller, Outcome

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """An observer of the ScoreService, with a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "preceptor_requests", "Groups asked for.", ["transport", "outcome"], registry=self._registry
        )
        self._in_progress = Gauge(
            "preceptor_requests_in_progress", "Groups that somebody waits for.", ["transport"], registry=self._registry
        )
        self._seconds = Histogram(
            "preceptor_request_seconds",
            "From a group's arrival until its answer was built.",
            ["transport"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._positions = Counter("preceptor_positions", "Scored positions.", ["transport"], registry=self._registry)
        self._is_serving = Gauge("preceptor_is_serving", "1 while the engine serves.", registry=self._registry)

    def watch(self, scheduler: Scheduler) -> None:
        """Its queue is read whenever the metrics are."""
        for name, help_text, read in (
            ("preceptor_queue_groups", "Groups that wait for a batch.", lambda: scheduler.num_waiting),
            ("preceptor_queue_tokens", "Tokens that wait for a batch.", lambda: scheduler.num_waiting_tokens),
            ("preceptor_tokens_in_flight", "Tokens that the engine works on.", lambda: scheduler.num_tokens_in_flight),
        ):
            Gauge(name, help_text, registry=self._registry).set_function(read)

    def set_serving(self, is_serving: bool) -> None:
        self._is_serving.set(is_serving)

    def began(self, caller: Caller) -> None:
        self._in_progress.labels(caller.transport).inc()

    def ended(self, outcome: Outcome) -> None:
        transport = outcome.caller.transport
        self._in_progress.labels(transport).dec()
        self._requests.labels(transport, outcome.reason).inc()
        self._seconds.labels(transport).observe(outcome.total_seconds)
        self._positions.labels(transport).inc(outcome.num_positions)

    def render(self) -> bytes:
        return generate_latest(self._registry)
