"""What every objective ignores, refuses and promotes, by one table of all of them."""

# N = positions, K = support size, V = vocabulary

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from preceptor_client.objectives.positions import Positions

from tests.unit.client.train.objective.cases import CONFIGS, OVER_A_SUPPORT, objective, positions_of, random_pair

TENSORS = [field for field in Positions.__dataclass_fields__ if field != "is_normalised"]
FLOATS = [field for field in TENSORS if field != "is_sampled_inside_N"]
RENORMALISED = ["lsm", "forward, renormalise", "jsd, renormalise"]


def _positions(*, k: int = 4) -> Positions:
    student_NV, teacher_NV = random_pair(3, 8)
    return positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(k, dim=1).indices)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("filler", [-3.0, 9.0, float("-inf")])
def test_columns_of_minus_infinity_change_neither_value_nor_gradient(name: str, filler: float) -> None:
    at = _positions()
    student_NK = at.student_logprobs_NK.detach()
    wide_NK = torch.cat([torch.full((3, 2), filler, dtype=torch.float64), student_NK], dim=1).requires_grad_()
    unused_NK = torch.full((3, 2), float("-inf"), dtype=torch.float64)
    wide = replace(
        at, student_logprobs_NK=wide_NK, teacher_logprobs_NK=torch.cat([unused_NK, at.teacher_logprobs_NK], dim=1)
    )
    loss_N = objective(name).loss(wide)
    torch.testing.assert_close(loss_N, objective(name).loss(at), rtol=1e-13, atol=1e-13)
    if name == "sampled_token":
        return
    (gradient_NK,) = torch.autograd.grad(loss_N.sum(), wide_NK)
    narrow_NK = student_NK.clone().requires_grad_()
    narrow_N = objective(name).loss(replace(at, student_logprobs_NK=narrow_NK))
    (expected_NK,) = torch.autograd.grad(narrow_N.sum(), narrow_NK)
    assert torch.equal(gradient_NK[:, :2], torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(gradient_NK[:, 2:], expected_NK)
    assert expected_NK.abs().max() > 1e-3


@pytest.mark.parametrize("name", OVER_A_SUPPORT)
def test_order_of_the_columns_does_not_matter(name: str) -> None:
    at = _positions()
    order = torch.tensor([2, 0, 3, 1])
    shuffled = replace(
        at, student_logprobs_NK=at.student_logprobs_NK[:, order], teacher_logprobs_NK=at.teacher_logprobs_NK[:, order]
    )
    torch.testing.assert_close(objective(name).loss(shuffled), objective(name).loss(at), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_position_does_not_depend_on_the_others(name: str) -> None:
    at = _positions()
    second = replace(at, **{field: getattr(at, field)[1:2] for field in TENSORS})
    torch.testing.assert_close(objective(name).loss(second), objective(name).loss(at)[1:2], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision_is_computed_in_fp32(name: str) -> None:
    at = _positions()
    half = replace(at, **{field: getattr(at, field).to(torch.bfloat16) for field in FLOATS})
    exact = replace(half, **{field: getattr(half, field).double() for field in FLOATS})
    loss_N = objective(name).loss(half)
    assert loss_N.dtype == torch.float32
    torch.testing.assert_close(loss_N, objective(name).loss(exact).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RENORMALISED)
def test_one_token_is_refused_where_the_loss_would_always_be_zero(name: str) -> None:
    with pytest.raises(ValueError, match="K must be 2 or more"):
        objective(name).loss(_positions(k=1))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in RENORMALISED])
def test_one_token_is_enough_elsewhere(name: str) -> None:
    assert (objective(name).loss(_positions(k=1)).abs() > 1e-3).all()


def _spoil(column: str, value: float) -> Callable[[Positions], Positions]:
    def spoil(at: Positions) -> Positions:
        changed = getattr(at, column).detach().clone()
        changed[1] = value
        return replace(at, **{column: changed})

    return spoil


@pytest.mark.parametrize("name", OVER_A_SUPPORT)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil("teacher_logprobs_NK", float("nan")), "NaN"),
        (_spoil("teacher_logprobs_NK", float("-inf")), "no support"),
        (lambda at: replace(at, student_logprobs_NK=at.student_logprobs_NK[:, 1:]), r"\[N, K\]"),
        (lambda at: replace(at, teacher_logprobs_NK=at.teacher_logprobs_NK[1:]), r"\[N, K\]"),
        (
            lambda at: replace(
                at,
                student_logprobs_NK=at.student_logprobs_NK[0],
                teacher_logprobs_NK=at.teacher_logprobs_NK[0],
            ),
            r"\[N, K\]",
        ),
    ],
)
def test_a_support_that_is_no_support_is_refused(
    name: str, spoil: Callable[[Positions], Positions], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective(name).loss(spoil(_positions()))


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("tail_bucket", "teacher_log_tail_N", float("nan"), "teacher log tail holds NaN"),
        ("forward, tail_bucket", "teacher_log_tail_N", float("nan"), "teacher log tail holds NaN"),
        ("sampled_token", "teacher_sampled_logprobs_N", float("nan"), "teacher sampled logprobs holds NaN"),
        ("ema_pg", "teacher_sampled_logprobs_N", float("nan"), "teacher sampled logprobs holds NaN"),
        ("sampled_token", "old_logprobs_N", float("nan"), "old logprobs holds NaN"),
        ("sampled_token", "old_logprobs_N", float("-inf"), "old logprob is not finite"),
        ("ema_pg", "old_logprobs_N", float("-inf"), "old logprob is not finite"),
    ],
)
def test_a_column_with_a_value_that_means_nothing_is_refused(
    name: str, column: str, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        objective(name).loss(_spoil(column, value)(_positions()))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("tail_bucket", "teacher_log_tail_N"),
        ("jsd, tail_bucket", "teacher_log_tail_N"),
        ("sampled_token", "student_sampled_logprobs_N"),
        ("sampled_token", "teacher_sampled_logprobs_N"),
        ("sampled_token", "old_logprobs_N"),
        ("ema_pg", "student_sampled_logprobs_N"),
        ("ema_pg", "teacher_sampled_logprobs_N"),
        ("ema_pg", "old_logprobs_N"),
        ("ema_pg", "is_sampled_inside_N"),
    ],
)
def test_a_column_of_another_length_is_refused_and_not_broadcast(name: str, column: str) -> None:
    at = _positions()
    with pytest.raises(ValueError, match=r"must be \[N\]"):
        objective(name).loss(replace(at, **{column: getattr(at, column)[:1]}))
