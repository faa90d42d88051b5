"""Shows queues and engines as they are at a scrape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from preceptor_server.observability.families import Family, ReadGauge


class Waiting(Protocol):
    """What waits of one tenant; the scheduler's."""

    @property
    def groups(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherState:
    """A teacher at the moment of a scrape. Nothing in it changes afterwards."""

    waiting_by_tenant: Mapping[str, Waiting]
    num_groups_in_flight: int
    num_tokens_in_flight: int
    engine: str = ""
    revision: str = ""


ReadState = Callable[[], TeacherState]


class StateMetrics:
    """Gauges that are read for each scrape."""

    def __init__(self, *, tenant_label: Callable[[str], str]) -> None:
        self._tenant_label = tenant_label
        by_tenant, by_teacher = ("teacher", "tenant"), ("teacher",)
        self._queue_groups = ReadGauge("preceptor_queue_groups", "Groups that wait for a batch.", by_tenant)
        self._queue_tokens = ReadGauge("preceptor_queue_tokens", "Tokens that wait for a batch.", by_tenant)
        self._queue_bytes = ReadGauge("preceptor_queue_bytes", "Memory of what waits for a batch.", by_tenant)
        self._groups = ReadGauge("preceptor_groups_in_flight", "Groups that the engine works on.", by_teacher)
        self._tokens = ReadGauge("preceptor_tokens_in_flight", "Tokens that the engine works on.", by_teacher)
        self._num_waiting = ReadGauge(
            "preceptor_num_requests_waiting",
            "Groups that wait, of all teachers: TotalQueuedRequests of the model server protocol.",
        )
        self._num_running = ReadGauge(
            "preceptor_num_requests_running",
            "Groups that the engines work on: TotalRunningRequests of the model server protocol.",
        )
        self._is_serving = ReadGauge("preceptor_is_serving", "1 while the teacher serves.", by_teacher)
        self._info = ReadGauge(
            "preceptor_teacher_info", "1 for each teacher; its labels tell of it.", ("teacher", "engine", "revision")
        )

    @property
    def families(self) -> tuple[Family, ...]:
        return (
            *(self._queue_groups, self._queue_tokens, self._queue_bytes, self._groups, self._tokens),
            *(self._num_waiting, self._num_running, self._is_serving, self._info),
        )

    def show(self, states: Mapping[str, TeacherState], *, serving: Mapping[str, bool]) -> None:
        waiting = {teacher: self._by_label(state.waiting_by_tenant) for teacher, state in states.items()}
        for column, gauge in enumerate((self._queue_groups, self._queue_tokens, self._queue_bytes)):
            gauge.read(
                {(teacher, tenant): sums[column] for teacher, of in waiting.items() for tenant, sums in of.items()}
            )
        self._groups.read({(teacher,): state.num_groups_in_flight for teacher, state in states.items()})
        self._tokens.read({(teacher,): state.num_tokens_in_flight for teacher, state in states.items()})
        self._num_waiting.read({(): sum(sums[0] for of in waiting.values() for sums in of.values())})
        self._num_running.read({(): sum(state.num_groups_in_flight for state in states.values())})
        self._is_serving.read({(teacher,): int(is_serving) for teacher, is_serving in serving.items()})
        self._info.read({(teacher, state.engine, state.revision): 1 for teacher, state in states.items()})

    def _by_label(self, waiting_by_tenant: Mapping[str, Waiting]) -> dict[str, tuple[int, int, int]]:
        """Groups, tokens and bytes; of tenants that share a label, their sum."""
        sums: dict[str, tuple[int, int, int]] = {}
        for tenant, waiting in waiting_by_tenant.items():
            label = self._tenant_label(tenant)
            groups, tokens, num_bytes = sums.get(label, (0, 0, 0))
            sums[label] = (groups + waiting.groups, tokens + waiting.tokens, num_bytes + waiting.num_bytes)
        return sums
