from __future__ import annotations

import math

import pytest
import torch
from preceptor_client.objectives.lsm import lsm

# N = positions, K = support size, V = vocabulary


def _random(num_rows: int, k: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(num_rows, k, generator=generator, dtype=torch.float64) * 2
    teacher = torch.log_softmax(torch.randn(num_rows, k, generator=generator, dtype=torch.float64) * 2, dim=1)
    return student, teacher


def test_value_worked_by_hand() -> None:
    # p = (3/4, 1/4) from logits (log 3, 0); q = (1/2, 1/2) from logprobs that are equal, whatever their mass.
    student = torch.tensor([[math.log(3.0), 0.0]])
    teacher = torch.tensor([[math.log(0.2), math.log(0.2)]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert lsm(student, teacher).item() == pytest.approx(expected, abs=1e-7)


def test_equals_the_dense_reverse_kl_when_the_support_is_the_vocabulary() -> None:
    student_NV, teacher_NV = _random(5, 11)
    p = torch.distributions.Categorical(logits=student_NV)
    q = torch.distributions.Categorical(logits=teacher_NV)
    torch.testing.assert_close(lsm(student_NV, teacher_NV), torch.distributions.kl_divergence(p, q))


def test_gradient_passes_gradcheck_in_float64() -> None:
    student, teacher = _random(3, 6)
    assert torch.autograd.gradcheck(lambda logits: lsm(logits, teacher, temperature=0.7), student.requires_grad_())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradient_is_p_times_log_ratio_minus_loss(temperature: float) -> None:
    student, teacher = _random(4, 7)
    student.requires_grad_()
    loss_N = lsm(student, teacher, temperature=temperature)
    (gradient_NK,) = torch.autograd.grad(loss_N.sum(), student)
    p_NK = torch.softmax(student.detach() / temperature, dim=1)
    q_NK = torch.softmax(teacher, dim=1)
    expected = p_NK * ((p_NK / q_NK).log() - loss_N.detach()[:, None]) / temperature
    torch.testing.assert_close(gradient_NK, expected)


def test_is_zero_where_the_student_agrees_inside_the_support() -> None:
    _, teacher = _random(4, 5)
    student = (teacher + 3.0).requires_grad_()
    loss_N = lsm(student, teacher)
    torch.testing.assert_close(loss_N, torch.zeros_like(loss_N), atol=1e-12, rtol=0)


def test_one_token_support_is_refused() -> None:
    with pytest.raises(ValueError, match="K must be 2 or more"):
        lsm(torch.zeros(3, 1), torch.zeros(3, 1))


def test_nan_from_the_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        lsm(torch.zeros(1, 2), torch.tensor([[0.0, math.nan]]))


def test_row_without_support_is_refused() -> None:
    with pytest.raises(ValueError, match="no support"):
        lsm(torch.zeros(1, 2), torch.full((1, 2), -math.inf))


def test_entries_of_minus_infinity_are_outside_for_both() -> None:
    student, teacher = _random(3, 6)
    wide_teacher = torch.cat([teacher, torch.full((3, 2), -math.inf, dtype=torch.float64)], dim=1)
    wide_student = torch.cat([student, torch.full((3, 2), 9.0, dtype=torch.float64)], dim=1).requires_grad_()
    loss_N = lsm(wide_student, wide_teacher)
    torch.testing.assert_close(loss_N, lsm(student, teacher))
    (gradient,) = torch.autograd.grad(loss_N.sum(), wide_student)
    assert torch.equal(gradient[:, 6:], torch.zeros(3, 2, dtype=torch.float64))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("row", [[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [88.0, -88.0, 0.0], [0.0, -math.inf, 1.0]])
def test_extreme_logits_and_ties_have_finite_loss_and_gradient(row: list[float]) -> None:
    student = torch.tensor([row], requires_grad=True)
    teacher = torch.tensor([[-1e-4, -12.0, -30.0]])
    loss_N = lsm(student, teacher)
    (gradient,) = torch.autograd.grad(loss_N.sum(), student)
    assert loss_N.isfinite().all()
    assert gradient.isfinite().all()


def test_half_precision_logits_are_computed_in_fp32() -> None:
    student, teacher = _random(4, 5)
    half = student.to(torch.bfloat16)
    loss_N = lsm(half, teacher.float())
    assert loss_N.dtype == torch.float32
    torch.testing.assert_close(loss_N, lsm(half.double(), teacher).float())
