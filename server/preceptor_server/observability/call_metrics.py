"""Counts calls and refusals. Its owner holds the lock."""

from __future__ import annotations

from preceptor_server.observability.families import Distribution, Family, Histogram, Values
from preceptor_server.observability.labels import BoundedNames, TenantLabels
from preceptor_server.observability.observer import OK, Asker, Outcome, Refusal

DURATION_BOUNDS = tuple(0.01 * 2**step for step in range(14))
"""10 ms to 82 s: the buckets of `gen_ai.server.request.duration` in OpenTelemetry's conventions."""
_BY_TEACHER = ("transport", "tenant", "teacher")
_MAX_METHODS = 32


class CallMetrics:
    """What is asked, by whom, and what became of it."""

    def __init__(self, *, tenants: TenantLabels, reasons: BoundedNames) -> None:
        self._tenants, self._reasons, self._methods = tenants, reasons, BoundedNames(_MAX_METHODS)
        self._requests = Values("preceptor_requests_total", "Groups that ended.", (*_BY_TEACHER, "outcome"))
        self._in_progress = Values(
            "preceptor_requests_in_progress", "Groups that somebody waits for.", ("transport", "tenant"), kind="gauge"
        )
        self._seconds = Histogram(
            "preceptor_request_duration_seconds",
            "From a group's arrival until its answer was built.",
            ("transport", "teacher", "outcome"),
            bounds=DURATION_BOUNDS,
        )
        self._gen_ai_seconds = Histogram(
            "gen_ai_server_request_duration_seconds",
            "The same by the names of OpenTelemetry's conventions for generative AI; error_type is empty on success.",
            (
                *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"),
                *("network_protocol_name", "error_type"),
            ),
            bounds=DURATION_BOUNDS,
        )
        self._queue_seconds = Histogram(
            "preceptor_queue_duration_seconds",
            "How long groups waited for a batch.",
            ("teacher",),
            bounds=DURATION_BOUNDS,
        )
        self._positions = Values("preceptor_positions_total", "Positions scored and answered.", _BY_TEACHER)
        self._prompt_tokens = Values("preceptor_prompt_tokens_total", "Prompt tokens of answered groups.", _BY_TEACHER)
        self._response_tokens = Values(
            "preceptor_response_tokens_total", "Response tokens of answered groups.", _BY_TEACHER
        )
        self._request_bytes = Values(
            "preceptor_request_bytes_total", "Size of the requests that reached scoring.", _BY_TEACHER
        )
        self._answer_bytes = Values("preceptor_answer_bytes_total", "Size of the answers.", _BY_TEACHER)
        self._refusals = Values(
            "preceptor_refusals_total",
            "Calls that never reached scoring: no key, malformed, too large.",
            ("transport", "tenant", "method", "reason"),
        )

    @property
    def families(self) -> tuple[Family, ...]:
        return (
            *(self._requests, self._in_progress, self._seconds, self._gen_ai_seconds, self._queue_seconds),
            *(self._positions, self._prompt_tokens, self._response_tokens, self._request_bytes, self._answer_bytes),
            self._refusals,
        )

    def began(self, caller: Asker) -> None:
        self._in_progress.at(caller.transport, self._tenants.of(caller.tenant.name)).value += 1

    def ended(self, outcome: Outcome, *, teacher: str) -> None:
        """`teacher` is the label; the outcome names whatever was asked for."""
        transport = outcome.caller.transport
        tenant, reason = self._tenants.of(outcome.caller.tenant.name), self._reasons.of(outcome.reason)
        self._in_progress.at(transport, tenant).value -= 1
        self._requests.at(transport, tenant, teacher, reason).value += 1
        self._distribution(transport, teacher, reason).observe(outcome.total_seconds)
        by_teacher = (transport, tenant, teacher)
        self._request_bytes.at(*by_teacher).value += outcome.request_bytes
        if outcome.queue_seconds is not None:
            self._queue_seconds.at(teacher).observe(outcome.queue_seconds)
        if outcome.reason == OK:
            self._positions.at(*by_teacher).value += outcome.num_positions
            self._prompt_tokens.at(*by_teacher).value += outcome.num_prompt_tokens
            self._response_tokens.at(*by_teacher).value += outcome.num_response_tokens
            self._answer_bytes.at(*by_teacher).value += outcome.answer_bytes

    def refused(self, refusal: Refusal) -> None:
        tenant, method = self._tenants.of(refusal.tenant), self._methods.of(refusal.method)
        self._refusals.at(refusal.transport, tenant, method, self._reasons.of(refusal.reason)).value += 1

    def _distribution(self, transport: str, teacher: str, reason: str) -> Distribution:
        """One distribution that stands under both names."""
        if self._seconds.has(transport, teacher, reason):
            return self._seconds.at(transport, teacher, reason)
        child = self._seconds.at(transport, teacher, reason)
        self._gen_ai_seconds.show(child, "score", "preceptor", teacher, transport, "" if reason == OK else reason)
        return child
