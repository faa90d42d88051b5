"""The clipped policy gradient: values worked by hand, and the objective that is made of it."""

from __future__ import annotations

from math import log

import pytest
import torch
from preceptor_client.objectives.policy_gradient import clipped_policy_gradient
from preceptor_client.objectives.sampled_token import sampled_token


def _loss(p: float, old: float, advantage: float, **clips: float | None) -> torch.Tensor:
    student_N = torch.tensor([log(p)], dtype=torch.float64, requires_grad=True)
    options = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": None} | clips
    loss_N = clipped_policy_gradient(
        student_N,
        torch.tensor([log(old)], dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        **options,  # type: ignore[arg-type]  # a table of the test
    )
    (gradient_N,) = torch.autograd.grad(loss_N.sum(), student_N)
    return torch.stack([loss_N.detach()[0], gradient_N[0]])


@pytest.mark.parametrize(
    ("p", "old", "advantage", "clips", "value", "gradient"),
    [
        # r = 1: the gradient to log p is -A
        (0.5, 0.5, 2.0, {}, -2.0, -2.0),
        # r = 1.25, inside the upper clip: not clipped, gradient -r A
        (0.5, 0.4, 2.0, {}, -2.5, -2.5),
        # r = 2, above 1 + clip_high: kept at 1.3, no gradient
        (0.8, 0.4, 2.0, {}, -2.6, 0.0),
        # r = 2 with A < 0: PPO keeps the larger loss, and its gradient
        (0.8, 0.4, -2.0, {}, 4.0, 4.0),
        # r = 0.5 below 1 - clip_low, A < 0: kept at 0.8
        (0.2, 0.4, -2.0, {}, 1.6, 0.0),
        # r = 0.5, A > 0: not clipped
        (0.2, 0.4, 2.0, {}, -1.0, -1.0),
        # r = 4, A < 0, dual clip 3: at most 3 |A|, no gradient; without it 4 |A|
        (0.8, 0.2, -2.0, {"dual_clip": 3.0}, 6.0, 0.0),
        (0.8, 0.2, -2.0, {}, 8.0, 8.0),
        # no credit: nothing
        (0.8, 0.2, 0.0, {"dual_clip": 3.0}, 0.0, 0.0),
    ],
)
def test_value_and_gradient_worked_by_hand(
    p: float, old: float, advantage: float, clips: dict[str, float], value: float, gradient: float
) -> None:
    assert _loss(p, old, advantage, **clips).tolist() == pytest.approx([value, gradient], abs=1e-12)


def test_the_sampled_token_is_it_with_the_teachers_gap_as_advantage() -> None:
    generator = torch.Generator().manual_seed(0)
    student_N, teacher_N, old_N = -4 * torch.rand(3, 200, generator=generator, dtype=torch.float64)
    expected_N = clipped_policy_gradient(
        student_N, old_N, teacher_N - old_N, clip_low=0.2, clip_high=0.2, dual_clip=3.0
    )
    assert torch.equal(sampled_token(student_N, teacher_N, old_N, clip_range=0.2, dual_clip=3.0), expected_N)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("advantage", float("nan"), "advantages holds NaN"),
        ("advantage", float("inf"), "an advantage is not finite"),
        ("old", float("-inf"), "old logprob is not finite"),
    ],
)
def test_columns_that_mean_nothing_are_refused(column: str, value: float, message: str) -> None:
    columns = {"old": torch.zeros(2), "advantage": torch.zeros(2)}
    columns[column][1] = value
    with pytest.raises(ValueError, match=message):
        clipped_policy_gradient(
            torch.zeros(2), columns["old"], columns["advantage"], clip_low=0.2, clip_high=0.2, dual_clip=None
        )
