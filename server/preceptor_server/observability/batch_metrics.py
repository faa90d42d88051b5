"""Counts batches. Its owner holds the lock."""

from __future__ import annotations

from preceptor_server.observability.call_metrics import DURATION_BOUNDS
from preceptor_server.observability.families import Family, Histogram, Values
from preceptor_server.observability.labels import BoundedNames, TenantLabels
from preceptor_server.observability.observer import BatchDone

_RATIO_BOUNDS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0)
"""Above 1: a group that is larger than a batch has a forward of its own."""
_GROUP_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class BatchMetrics:
    """What the engines compute, for whom, and how full their batches are."""

    def __init__(self, *, tenants: TenantLabels, reasons: BoundedNames) -> None:
        self._tenants, self._reasons = tenants, reasons
        self._batches = Values("preceptor_batches_total", "Forwards of the engine.", ("teacher", "outcome"))
        self._seconds = Histogram(
            "preceptor_batch_duration_seconds", "How long a batch took.", ("teacher",), bounds=DURATION_BOUNDS
        )
        self._occupancy = Histogram(
            "preceptor_batch_occupancy_ratio",
            "Computed tokens of a batch over its room; above 1 for a group that is larger than a batch. None of "
            "engines that make their own batches.",
            ("teacher",),
            bounds=_RATIO_BOUNDS,
        )
        self._groups = Histogram("preceptor_batch_groups", "Groups in a batch.", ("teacher",), bounds=_GROUP_BOUNDS)
        self._computed = Values(
            "preceptor_tokens_computed_total", "Tokens that the engine computed.", ("teacher", "tenant")
        )
        self._reused = Values(
            "preceptor_tokens_reused_total",
            "Tokens that the engine did not have to compute: prefixes that groups share, or that it still had.",
            ("teacher",),
        )

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._batches, self._seconds, self._occupancy, self._groups, self._computed, self._reused)

    def batch_done(self, teacher: str, done: BatchDone) -> None:
        self._batches.at(teacher, self._reasons.of(done.reason)).value += 1
        self._seconds.at(teacher).observe(done.seconds)
        self._groups.at(teacher).observe(done.num_groups)
        if done.max_tokens:
            self._occupancy.at(teacher).observe((done.num_tokens - done.num_reused_tokens) / done.max_tokens)
        for tenant, num_tokens in done.computed_by_tenant.items():
            self._computed.at(teacher, self._tenants.of(tenant)).value += num_tokens
        self._reused.at(teacher).value += done.num_reused_tokens
