"""Gradients to the student's logits: against finite differences where the loss is all differentiated, against the
gradient written out where parts of it are held constant, and by hand at the ends, mass 0 and mass 1."""

# N = positions, K = support size, V = vocabulary

from __future__ import annotations

import math

import pytest
import torch
from preceptor_client.objectives.sampled_token import sampled_token

from tests.unit.client.train.objective.cases import (
    CONFIGS,
    DIFFERENTIABLE,
    objective,
    positions_of,
    random_pair,
)


def _logit_gradient(name: str, logits_NV: torch.Tensor, teacher_NV: torch.Tensor, ids_NK: torch.Tensor) -> torch.Tensor:
    leaf_NV = logits_NV.clone().requires_grad_()
    loss_N = objective(name).loss(positions_of(leaf_NV, teacher_NV, ids_NK=ids_NK))
    assert loss_N.isfinite().all()
    return torch.autograd.grad(loss_N.sum(), leaf_NV)[0]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_through_the_logits_passes_gradcheck_in_float64(name: str) -> None:
    student_NV, teacher_NV = random_pair(3, 8)
    ids_NK = teacher_NV.topk(4, dim=1).indices
    assert torch.autograd.gradcheck(
        lambda logits_NV: objective(name).loss(positions_of(logits_NV, teacher_NV, ids_NK=ids_NK)),
        student_NV.requires_grad_(),
    )


def test_stop_gradient_is_the_sum_of_score_vectors_with_constant_weights() -> None:
    student_NV, teacher_NV = random_pair(3, 8)
    ids_NK = teacher_NV.topk(4, dim=1).indices
    expected_NV = torch.zeros_like(student_NV)
    for n in range(3):
        p = [math.exp(z) for z in student_NV[n].tolist()]
        p = [value / sum(p) for value in p]
        inside = ids_NK[n].tolist()
        for k in inside:
            weight = p[k] / sum(p[j] for j in inside) * (math.log(p[k]) - teacher_NV[n, k].item())
            for v in range(8):
                expected_NV[n, v] += weight * ((1.0 if v == k else 0.0) - p[v])
    torch.testing.assert_close(_logit_gradient("stop_gradient", student_NV, teacher_NV, ids_NK), expected_NV)


def test_sampled_token_is_the_score_vector_times_minus_ratio_times_advantage() -> None:
    student_NV, teacher_NV = random_pair(4, 8)
    p_NV = torch.softmax(student_NV, dim=1)
    expected_NV = -(teacher_NV[:, 7:] - p_NV[:, 7:].log()) * (torch.eye(8, dtype=torch.float64)[7] - p_NV)
    ids_NK = teacher_NV.topk(4, dim=1).indices
    torch.testing.assert_close(_logit_gradient("sampled_token", student_NV, teacher_NV, ids_NK), expected_NV)


@pytest.mark.parametrize(
    ("p", "q", "old", "expected"),
    [
        # Within the clip: the gradient to log p is -r A.
        (0.5, 0.8, 0.45, -(0.5 / 0.45) * math.log(0.8 / 0.45)),
        # Clipped on either side, and by the dual clip: none.
        (0.5, 0.8, 0.4, 0.0),
        (0.1, 0.1, 0.2, 0.0),
        (0.8, 0.1, 0.2, 0.0),
        # Not clipped, as the move back makes the loss smaller.
        (0.5, 0.1, 0.4, 1.25 * math.log(4)),
    ],
)
def test_sampled_token_has_no_gradient_where_it_is_clipped(p: float, q: float, old: float, expected: float) -> None:
    p_N, q_N, old_N = (torch.tensor([value], dtype=torch.float64).log() for value in (p, q, old))
    p_N.requires_grad_()
    loss_N = sampled_token(p_N, q_N, old_N, clip_range=0.2, dual_clip=3.0)
    (gradient_N,) = torch.autograd.grad(loss_N.sum(), p_N)
    assert gradient_N.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("student", "teacher"), [(-1.0, -0.5), (-1.0, -300.0), (-math.inf, -0.5)])
def test_sampled_token_is_finite_where_the_ratio_overflows_or_is_zero(student: float, teacher: float) -> None:
    student_N = torch.tensor([student], requires_grad=True)
    for old in (-200.0, -0.1):
        loss_N = sampled_token(student_N, torch.tensor([teacher]), torch.tensor([old]), clip_range=0.2, dual_clip=3.0)
        (gradient_N,) = torch.autograd.grad(loss_N.sum(), student_N)
        assert loss_N.isfinite().all()
        assert gradient_N.isfinite().all()


@pytest.mark.parametrize(("ratio", "weight"), [(1.5, 1.5), (0.5, 0.5), (4.0, 2.0)])
@pytest.mark.parametrize("is_inside", [True, False])
def test_ema_pg_is_the_gradient_of_its_head_plus_one_weighed_score_vector(
    is_inside: bool, ratio: float, weight: float
) -> None:
    student_NV, teacher_NV = random_pair(3, 8)
    ids_NK = torch.tensor([[0, 1, 2]]).expand(3, 3)
    p_NV = torch.softmax(student_NV, dim=1)
    signal_NV = p_NV.log() - teacher_NV + 1
    expected_NV = torch.zeros_like(p_NV)
    for k in range(3):
        expected_NV += (p_NV * signal_NV)[:, k : k + 1] * (torch.eye(8, dtype=torch.float64)[k] - p_NV)
    y = 1 if is_inside else 5
    if not is_inside:
        expected_NV += weight * signal_NV[:, 5:6] * (torch.eye(8, dtype=torch.float64)[5] - p_NV)
    leaf_NV = student_NV.clone().requires_grad_()
    positions = positions_of(
        leaf_NV,
        teacher_NV,
        ids_NK=ids_NK,
        sampled_N=torch.full((3,), y),
        old_logprobs_N=(p_NV[:, y] / ratio).log(),
    )
    (gradient_NV,) = torch.autograd.grad(objective("ema_pg").loss(positions).sum(), leaf_NV)
    torch.testing.assert_close(gradient_NV, expected_NV)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "row",
    [
        [0.0, 1.0, 2.0, -1e3, -1e3, -1e3],  # all the mass in the support
        [-1e3, -1e3, -1e3, 0.0, 1.0, 2.0],  # none of it
        [-200.0, -200.0, -200.0, 0.0, 0.0, 0.0],
        [-200.0, 0.0, -math.inf, 0.0, 0.0, -math.inf],
        [-math.inf, -math.inf, -math.inf, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, -math.inf, -math.inf, -math.inf],
        [17.0, 0.0, 0.0, 0.0, 0.0, 0.0],  # a mass that fp32 can just not tell from 1
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1e4, 0.0, -1e4, 0.0, 0.0, 0.0],
    ],
)
@pytest.mark.parametrize(
    "teacher", [[-1.0, -2.0, -3.0, -0.9, -4.0, -5.0], [0.0, -40.0, -120.0, -math.inf, -150.0, -90.0]]
)
@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_is_finite_at_every_mass(
    name: str, teacher: list[float], row: list[float], dtype: torch.dtype
) -> None:
    logits_NV, teacher_NV = torch.tensor([row], dtype=dtype), torch.tensor([teacher], dtype=dtype)
    leaf_NV = logits_NV.requires_grad_()
    at = positions_of(
        leaf_NV,
        teacher_NV,
        ids_NK=torch.tensor([[0, 1, 2]]),
        sampled_N=torch.tensor([3]),
        old_logprobs_N=torch.tensor([-1.0], dtype=dtype),
    )
    loss_N = objective(name).loss(at)
    (gradient_NV,) = torch.autograd.grad(loss_N.sum(), leaf_NV)
    assert loss_N.isfinite().all()
    assert gradient_NV.isfinite().all()
    # Logits are free up to a constant: what is pushed up is taken from elsewhere. The forward KL alone divides by the
    # student's tail; at mass 1 that is a few roundings, and the pull of the teacher's tail is off by as many times.
    tail = at.teacher_log_tail_N.exp().item() if name == "forward, tail_bucket" else 0.0
    assert abs(gradient_NV.sum().item()) < 4 * tail + 1e-3


def test_mass_of_zero_has_no_gradient_under_the_reverse_kl_and_all_of_it_under_the_forward_one() -> None:
    student_NV = torch.tensor([[-200.0, -200.0, 0.0, 0.0]])
    teacher_NV = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    ids_NK = torch.tensor([[0, 1]])
    reverse_NV = _logit_gradient("tail_bucket", student_NV, teacher_NV, ids_NK)
    torch.testing.assert_close(reverse_NV, torch.zeros(1, 4), atol=1e-7, rtol=0)
    # p - q, with the rest sharing what the support lacks.
    forward_NV = _logit_gradient("forward, tail_bucket", student_NV, teacher_NV, ids_NK)
    torch.testing.assert_close(forward_NV, torch.tensor([[-0.5, -0.3, 0.4, 0.4]]), atol=1e-6, rtol=0)


def test_mass_of_one_leaves_the_gradient_of_the_support_alone() -> None:
    # No tail is left to push up.
    student_NV = torch.tensor([[1.0, 0.0, -1e3, -1e3]])
    teacher_NV = torch.tensor([[0.3, 0.3, 0.2, 0.2]]).log()
    p = torch.softmax(torch.tensor([1.0, 0.0]), dim=0)
    signal = (p / 0.3).log()
    expected_NV = torch.cat([p * (signal - (p * signal).sum()), torch.zeros(2)])[None]
    gradient_NV = _logit_gradient("tail_bucket", student_NV, teacher_NV, torch.tensor([[0, 1]]))
    torch.testing.assert_close(gradient_NV, expected_NV, atol=2e-5, rtol=0)


MOVE_THE_TEACHER = {
    "truncated": "collapses",
    "forward, truncate": "concentrates",
    "ema_pg": "its sample does, around an expectation of 0",
    "full_vocabulary": "over a support that is not the vocabulary",
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_small_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    student_NV, teacher_NV = random_pair(6, 8, seed=3)
    ids_NK = teacher_NV.topk(4, dim=1).indices
    before_N = objective(name).loss(positions_of(student_NV, teacher_NV, ids_NK=ids_NK))
    moved_NV = student_NV - 1e-3 * _logit_gradient(name, student_NV, teacher_NV, ids_NK)
    assert (objective(name).loss(positions_of(moved_NV, teacher_NV, ids_NK=ids_NK)) < before_N).all()


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in MOVE_THE_TEACHER])
def test_a_student_that_is_the_teacher_has_no_gradient(name: str) -> None:
    _, teacher_NV = random_pair(6, 8)
    ids_NK = teacher_NV.topk(4, dim=1).indices
    torch.testing.assert_close(_logit_gradient(name, teacher_NV, teacher_NV, ids_NK), torch.zeros_like(teacher_NV))


@pytest.mark.parametrize("name", ["truncated", "forward, truncate"])
def test_truncation_moves_a_student_that_is_the_teacher(name: str) -> None:
    _, teacher_NV = random_pair(6, 8)
    ids_NK = teacher_NV.topk(4, dim=1).indices
    pull_N = _logit_gradient(name, teacher_NV, teacher_NV, ids_NK).gather(1, ids_NK).sum(dim=1)
    mass_N = teacher_NV.exp().gather(1, ids_NK).sum(dim=1)
    # Reverse: the sum of p, differentiated, is M (1 - M), down; forward is the same, up.
    expected_N = mass_N * (1 - mass_N) * (1 if name == "truncated" else -1)
    torch.testing.assert_close(pull_N, expected_N)
