"""Puts observability together: what is told of calls, what is shown of them, and when it starts and ends."""

from __future__ import annotations

import asyncio
import json
import logging
from http import HTTPStatus
from typing import TypeVar

from preceptor_server.errors import StartupError
from preceptor_server.observability.config import ObserveConfig
from preceptor_server.observability.event_loop import LoopWatch
from preceptor_server.observability.families import MEDIA_TYPE
from preceptor_server.observability.health import Health
from preceptor_server.observability.listener import Listener
from preceptor_server.observability.metrics import Metrics
from preceptor_server.observability.observer import Observer, Observers, Outcome
from preceptor_server.observability.pages import Page
from preceptor_server.observability.tracing import NO_TRACING, Tracing
from preceptor_server.observability.traffic import Traffic

logger = logging.getLogger(__name__)

OutcomeT = TypeVar("OutcomeT", bound=Outcome)

_JSON = "application/json"
_CLOSE_SECONDS = 2.0
"""How long the end of the server waits for the last traces to be sent."""


class Observatory:
    """One per server, made before the model is loaded."""

    def __init__(self, config: ObserveConfig, *, version: str) -> None:
        """Binds. Raises StartupError where the port is in use or OpenTelemetry is missing."""
        self.health = Health()
        self.metrics = Metrics(health=self.health, version=version, max_tenants=config.max_tenants)
        self.traffic = Traffic()
        self.tracing = build_tracing(config, version=version)
        self._stuck_seconds = config.stuck_seconds
        self._watch: LoopWatch | None = None
        self._listener = (
            None if config.port is None else Listener(self.page, host=config.host, port=config.port)
        )  # fmt: skip

    @property
    def address(self) -> str | None:
        """Where it listens."""
        return None if self._listener is None else self._listener.address

    def observers(self, *more: Observer[OutcomeT]) -> Observers[OutcomeT]:
        """To be told of every call: metrics, traffic, and these. Their failures are counted; ask once."""
        observers: Observers[OutcomeT] = Observers((self.metrics, self.traffic, *more))
        self.metrics.observe_failures(observers.failures)
        return observers

    def start(self) -> None:
        """From the server's event loop."""
        self._watch = LoopWatch(asyncio.get_running_loop(), delays=self.metrics.loop_delays)
        self._watch.start()
        self.metrics.watch(self._watch)
        if self._listener is not None:
            self._listener.start()

    async def stop(self) -> None:
        """Stopping twice is fine."""
        if self._watch is not None:
            self._watch.stop()
        if self._listener is not None:
            await asyncio.to_thread(self._listener.stop)
        await asyncio.to_thread(self.tracing.close, _CLOSE_SECONDS)

    def page(self, path: str) -> Page | None:
        """What is shown under a path, from any thread."""
        if path == "/metrics":
            return Page(body=self.metrics.render(), media_type=MEDIA_TYPE)
        if path == "/healthz":
            return self._healthz()
        return self._readyz() if path == "/readyz" else None

    def _healthz(self) -> Page:
        delay_seconds = 0.0 if self._watch is None else self._watch.delay_seconds
        is_stuck = delay_seconds > self._stuck_seconds
        status = HTTPStatus.SERVICE_UNAVAILABLE if is_stuck else HTTPStatus.OK
        word = "stuck" if is_stuck else "alive"
        return _json({"status": word, "event_loop_delay_seconds": round(delay_seconds, 3)}, status)

    def _readyz(self) -> Page:
        if self.health.is_ready:
            return _json({"status": "serving", "teachers": dict(self.health.teachers)}, HTTPStatus.OK)
        word = "draining" if self.health.is_draining else "not serving"
        return _json({"status": word, "teachers": dict(self.health.teachers)}, HTTPStatus.SERVICE_UNAVAILABLE)


def build_tracing(config: ObserveConfig, *, version: str) -> Tracing:
    """Imports OpenTelemetry only where traces are asked for. Raises StartupError where it is missing."""
    if config.otlp_endpoint is None:
        return NO_TRACING
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        from preceptor_server.observability.otlp import OtlpTracing
    except ImportError as error:
        raise StartupError(
            f"observe.otlp_endpoint needs OpenTelemetry ({error}): pip install 'preceptor[otel]', or leave it out"
        ) from error
    logger.info("tracing endpoint=%s share=%g", config.otlp_endpoint, config.trace_share)
    return OtlpTracing(OTLPSpanExporter(endpoint=config.otlp_endpoint), version=version, share=config.trace_share)


def _json(value: dict[str, object], status: HTTPStatus) -> Page:
    return Page(body=json.dumps(value).encode(), status=status, media_type=_JSON)
