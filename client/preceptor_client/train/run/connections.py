"""Opens the teachers of a run: a client for each server, or a class of the user's own. Asks them nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from preceptor_client.retry import RetryEvent
from preceptor_client.train.run.display import Display
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.opening import opened_client
from preceptor_client.train.teacher.scorer import GRPC, SCORERS, Scorer

_log = logging.getLogger(__name__)


@contextmanager
def open_teachers(
    teachers: Mapping[str, TeacherConfig],
    *,
    given: Scorer | Mapping[str, Scorer] | None,
    display: Display,
    has_names: bool = False,
) -> Iterator[dict[str, Scorer]]:
    """The teachers by name. `given` replaces servers: one for all names, or some by name. `has_names` says whether the
    run has [teachers.NAME]."""
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(teachers, given)
    with ExitStack() as stack:
        opened: dict[str, Scorer] = {}
        for name, config in teachers.items():
            scorer = by_name.get(name)
            if scorer is None:
                key = f"teachers.{name}" if has_names else "teacher"
                scorer = stack.enter_context(_opened(config, key=key, display=display))
            opened[name] = scorer
        yield opened


@contextmanager
def _opened(config: TeacherConfig, *, key: str, display: Display) -> Iterator[Scorer]:
    if config.kind != GRPC:
        own = SCORERS.make(config.kind, config.options, key=f"{key}.kind")
        try:
            yield own
        finally:
            if close := getattr(own, "close", None):
                close()
        return
    patience = config.patience_seconds

    def show_retry(event: RetryEvent) -> None:
        state = "unreachable" if event.code == "UNAVAILABLE" else f"not answering ({event.code})"
        doing = "waiting" if event.next_delay_seconds else "going on"
        display.notice(
            f"teacher {state} at {event.address}, {doing} ({event.elapsed_seconds:.0f} s of {patience:.0f} s)"
        )
        _log.warning(
            "teacher does not answer: address=%s code=%s attempt=%d elapsed=%.1fs next=%.1fs message=%r",
            *(event.address, event.code, event.attempt, event.elapsed_seconds, event.next_delay_seconds, event.message),
        )

    with opened_client(config, key=key, on_retry=show_retry) as client:
        yield client
