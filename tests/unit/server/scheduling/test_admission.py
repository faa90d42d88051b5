from __future__ import annotations

import pytest
from preceptor_server.errors import QueueFullError
from preceptor_server.scheduling.admission import Admission


def retry_delay(admission: Admission, num_tokens: int) -> float:
    with pytest.raises(QueueFullError) as caught:
        admission.admit(num_tokens, num_waiting_tokens=10**9)
    return caught.value.retry_after_seconds


def test_group_that_fills_the_queue_to_the_last_token_is_admitted() -> None:
    Admission(max_queue_tokens=100).admit(40, num_waiting_tokens=60)


def test_group_that_would_pass_the_bound_is_refused_with_the_figures() -> None:
    with pytest.raises(QueueFullError, match=r"60 tokens wait already and 41 more .* max_queue_tokens=100"):
        Admission(max_queue_tokens=100).admit(41, num_waiting_tokens=60)


def test_before_any_batch_the_delay_is_a_second() -> None:
    assert retry_delay(Admission(max_queue_tokens=100), 50) == 1.0


def test_delay_is_the_time_that_the_group_takes_at_the_speed_seen() -> None:
    admission = Admission(max_queue_tokens=100)
    admission.observe(1000, 2.0)
    assert retry_delay(admission, 1500) == pytest.approx(3.0)


def test_speed_follows_slowly_what_is_newest() -> None:
    admission = Admission(max_queue_tokens=100)
    admission.observe(100, 1.0)
    admission.observe(200, 1.0)
    # 100 + 0.2 * (200 - 100) = 120 tokens per second
    assert retry_delay(admission, 240) == pytest.approx(2.0)


@pytest.mark.parametrize(("num_tokens", "delay"), [(1, 0.1), (1_000_000, 30.0)])
def test_delay_is_never_pointlessly_short_or_long(num_tokens: int, delay: float) -> None:
    admission = Admission(max_queue_tokens=100)
    admission.observe(1000, 1.0)
    assert retry_delay(admission, num_tokens) == delay


def test_batch_that_took_no_time_is_not_counted() -> None:
    admission = Admission(max_queue_tokens=100)
    admission.observe(1000, 0.0)
    assert retry_delay(admission, 50) == 1.0
