"""The keyword arguments of a client, for what passes them on. `TeacherClient` describes them."""

from __future__ import annotations

from collections.abc import Callable

from preceptor_client.access import AccessOptions
from preceptor_client.retry import RetryEvent, RetryPolicy
from preceptor_client.score_cache import ScoreCache
from preceptor_client.transport import Transport


class ClientOptions(AccessOptions, total=False):
    """Of TeacherClient and of BlockingTeacherClient."""

    timeout_seconds: float
    attempt_timeout_seconds: float | None
    retry: RetryPolicy
    caller: str
    max_message_bytes: int
    on_retry: Callable[[RetryEvent], None] | None
    objective: str
    cache: ScoreCache | None
    transport: Transport | None
    hedge_seconds: float | None
    max_concurrent_calls: int
    max_bytes_in_flight: int
