"""Values worked by hand, on one position of four tokens, the first two being the support.

p = (1/2, 1/4, 1/8, 1/8), q = (1/8, 1/4, 1/8, 1/2). So on the support the masses are 3/4 and 3/8, the tails P = 1/4 and
Q = 5/8; renormalised, p is (2/3, 1/3) and q is (1/3, 2/3); log(p/q) is (log 4, 0).
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from preceptor_client.objectives.ema_pg import ema_pg
from preceptor_client.objectives.full_vocabulary import full_vocabulary
from preceptor_client.objectives.positions import Positions
from preceptor_client.objectives.sampled_token import sampled_token

from tests.unit.client.train.objective.cases import objective, positions_of

STUDENT = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8]], dtype=torch.float64).log()
TEACHER = torch.tensor([[1 / 8, 1 / 4, 1 / 8, 1 / 2]], dtype=torch.float64).log()


def _positions() -> Positions:
    return positions_of(STUDENT, TEACHER, ids_NK=torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 2/3 log 2 + 1/3 log 1/2
        ("lsm", log(2) / 3),
        # 1/2 log 4 + 1/4 log 1 = log 2, which the next two correct
        ("truncated", log(2)),
        ("tail_bucket", log(2) + 1 / 4 * log(2 / 5)),
        ("generalised_kl", log(2) - 3 / 4 + 3 / 8),
        # 1/3 log 1/2 + 2/3 log 2
        ("forward, renormalise", log(2) / 3),
        # 1/8 log 1/4 + 1/4 log 1
        ("forward, truncate", -log(2) / 4),
        ("forward, tail_bucket", -log(2) / 4 + 5 / 8 * log(5 / 2)),
        # beta = 1/2, m = (5/16, 1/4, 7/16)
        (
            "jsd, tail_bucket",
            1 / 2 * (1 / 8 * log(2 / 5) + 5 / 8 * log(10 / 7)) + 1 / 2 * (1 / 2 * log(8 / 5) + 1 / 4 * log(4 / 7)),
        ),
        # beta = 1/4: m = (1/4 * 1/3 + 3/4 * 2/3, ...) = (7/12, 5/12)
        (
            "jsd, renormalise",
            1 / 4 * (1 / 3 * log(4 / 7) + 2 / 3 * log(8 / 5)) + 3 / 4 * (2 / 3 * log(8 / 7) + 1 / 3 * log(4 / 5)),
        ),
        # beta = 1/4: m = (1/4 * 1/8 + 3/4 * 1/2, 1/4) = (13/32, 1/4)
        ("jsd, truncate", 1 / 4 * 1 / 8 * log(4 / 13) + 3 / 4 * 1 / 2 * log(16 / 13)),
        # 2/3 log 4 + 1/3 log 1
        ("stop_gradient", 4 / 3 * log(2)),
        # The last token: ratio 1, A = log(1/2) - log(1/8)
        ("sampled_token", -2 * log(2)),
        # truncated, plus log p - log q of the last token, which is outside the support
        ("ema_pg", log(2) - 2 * log(2)),
    ],
)
def test_value_worked_by_hand(name: str, expected: float) -> None:
    assert objective(name).loss(_positions()).item() == pytest.approx(expected, abs=1e-14)


def test_full_vocabulary_worked_by_hand() -> None:
    # 1/2 log 4 + 1/4 log 1 + 1/8 log 1 + 1/8 log 1/4
    positions = positions_of(STUDENT, TEACHER, ids_NK=torch.tensor([[0, 1, 2, 3]]))
    assert objective("full_vocabulary").loss(positions).item() == pytest.approx(3 / 4 * log(2), abs=1e-13)


def test_full_vocabulary_prices_tokens_that_the_teacher_cannot_write() -> None:
    # 1/2 log 1 + 1/4 log 1/2 + 1/4 (log 1/4 - log tiny), with log tiny = -126 log 2
    student = torch.tensor([[1 / 2, 1 / 4, 1 / 4]], dtype=torch.float64).log()
    teacher = torch.tensor([[1 / 2, 1 / 2, 0.0]], dtype=torch.float64).log()
    expected = -log(2) / 4 + (-2 + 126) * log(2) / 4
    assert full_vocabulary(student, teacher).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "q", "old", "expected"),
    [
        # r = 5/4 is above 1.2 and A = log 2 > 0: clipped
        (1 / 2, 4 / 5, 2 / 5, -1.2 * log(2)),
        # the same r with A = -log 4: PPO keeps the larger loss
        (1 / 2, 1 / 10, 2 / 5, 5 / 4 * log(4)),
        # r = 1/2 below 0.8, A = -log 2: clipped
        (1 / 10, 1 / 10, 1 / 5, 0.8 * log(2)),
        # r = 4, A = -log 2: dual clip at 3
        (4 / 5, 1 / 10, 1 / 5, 3 * log(2)),
        # r = 1/2, A = log 2: not clipped
        (1 / 10, 2 / 5, 1 / 5, -log(2) / 2),
        # A teacher that cannot write the token counts as -100 nats
        (1 / 2, 0.0, 1 / 2, 100 + log(1 / 2)),
    ],
)
def test_sampled_token_is_clipped_on_the_side_that_ppo_clips(p: float, q: float, old: float, expected: float) -> None:
    p_N, q_N, old_N = (torch.tensor([value], dtype=torch.float64).log() for value in (p, q, old))
    loss_N = sampled_token(p_N, q_N, old_N, clip_range=0.2, dual_clip=3.0)
    assert loss_N.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("old", "weight"), [(1 / 8, 1.0), (1 / 4, 0.5), (1 / 12, 1.5), (1 / 32, 2.0)])
def test_ema_pg_weighs_its_sample_by_the_ratio_to_the_old_student_up_to_two(old: float, weight: float) -> None:
    positions = replace(_positions(), old_logprobs_N=torch.tensor([log(old)], dtype=torch.float64))
    expected = log(2) - weight * 2 * log(2)
    assert objective("ema_pg").loss(positions).item() == pytest.approx(expected, abs=1e-12)


def test_ema_pg_has_no_sampled_term_for_a_token_inside_the_support() -> None:
    positions = positions_of(STUDENT, TEACHER, ids_NK=torch.tensor([[0, 1]]), sampled_N=torch.tensor([0]))
    assert objective("ema_pg").loss(positions).item() == pytest.approx(log(2), abs=1e-14)


def test_ema_pg_counts_a_token_that_the_teacher_cannot_write_as_minus_100_nats() -> None:
    at = _positions()
    loss_N = ema_pg(
        at.student_logprobs_NK,
        at.teacher_logprobs_NK,
        at.student_sampled_logprobs_N,
        torch.tensor([float("-inf")]),
        at.old_logprobs_N,
        at.is_sampled_inside_N,
    )
    assert loss_N.item() == pytest.approx(log(2) + log(1 / 8) + 100, abs=1e-12)
