"""Where the support is the whole vocabulary, every loss is its dense divergence; and identities that hold elsewhere."""

# N = positions, V = vocabulary

from __future__ import annotations

import pytest
import torch
from preceptor_client.objectives.classes import Outside
from preceptor_client.objectives.forward import forward
from preceptor_client.objectives.jsd import jsd
from preceptor_client.objectives.tail_bucket import tail_bucket

from tests.unit.client.train.objective.cases import dense_reverse_kl, objective, positions_of, random_pair

OUTSIDE: list[Outside] = ["renormalise", "tail_bucket", "truncate"]
ALL = torch.arange(9).expand(5, 9)


def _dense_jsd(student_NV: torch.Tensor, teacher_NV: torch.Tensor, *, beta: float) -> torch.Tensor:
    p_NV, q_NV = torch.softmax(student_NV, dim=1), teacher_NV.exp()
    m_NV = beta * q_NV + (1 - beta) * p_NV
    to_m_NV = beta * q_NV * (q_NV / m_NV).log() + (1 - beta) * p_NV * (p_NV / m_NV).log()
    return to_m_NV.sum(dim=1)


@pytest.mark.parametrize("name", ["lsm", "tail_bucket", "generalised_kl", "truncated", "full_vocabulary", "ema_pg"])
def test_value_and_gradient_are_the_dense_reverse_kl_when_the_support_is_the_vocabulary(name: str) -> None:
    student_NV, teacher_NV = random_pair(5, 9)
    student_NV.requires_grad_()
    ours_N = objective(name).loss(positions_of(student_NV, teacher_NV, ids_NK=ALL))
    dense_N = dense_reverse_kl(student_NV, teacher_NV)
    torch.testing.assert_close(ours_N, dense_N, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss_N.sum(), student_NV, retain_graph=True)[0] for loss_N in (ours_N, dense_N)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_forward_is_the_dense_forward_kl_when_the_support_is_the_vocabulary(outside: Outside) -> None:
    student_NV, teacher_NV = random_pair(5, 9)
    ours_N = objective(f"forward, {outside}").loss(positions_of(student_NV, teacher_NV, ids_NK=ALL))
    torch.testing.assert_close(ours_N, dense_reverse_kl(teacher_NV, student_NV.log_softmax(dim=1)))


@pytest.mark.parametrize(("outside", "beta"), [("renormalise", 0.25), ("tail_bucket", 0.5), ("truncate", 0.25)])
def test_jsd_is_the_dense_one_when_the_support_is_the_vocabulary(outside: Outside, beta: float) -> None:
    student_NV, teacher_NV = random_pair(5, 9)
    ours_N = objective(f"jsd, {outside}").loss(positions_of(student_NV, teacher_NV, ids_NK=ALL))
    torch.testing.assert_close(ours_N, _dense_jsd(student_NV, teacher_NV, beta=beta))


def test_in_fp32_a_tail_of_nothing_costs_no_more_than_rounding() -> None:
    student_NV, teacher_NV = random_pair(200, 500)
    at = positions_of(student_NV.float(), teacher_NV.float(), ids_NK=torch.arange(500).expand(200, 500))
    dense_N = dense_reverse_kl(student_NV, teacher_NV).float()
    # 1 - the sum of 500 roundings, at 87 nats each, is 5e-5.
    torch.testing.assert_close(objective("full_vocabulary").loss(at), dense_N, rtol=1e-6, atol=1e-4)


def test_tail_bucket_is_a_lower_bound_of_the_dense_reverse_kl() -> None:
    student_NV, teacher_NV = random_pair(50, 9)
    ids_NK = teacher_NV.topk(3, dim=1).indices
    ours_N = objective("tail_bucket").loss(positions_of(student_NV, teacher_NV, ids_NK=ids_NK))
    dense_N = dense_reverse_kl(student_NV, teacher_NV)
    assert (ours_N >= 0).all()
    assert (ours_N <= dense_N + 1e-12).all()
    assert (dense_N - ours_N).max() > 0.1


def test_generalised_kl_is_never_negative_where_truncated_is() -> None:
    student_NV, teacher_NV = random_pair(200, 9)
    at = positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(3, dim=1).indices)
    assert (objective("truncated").loss(at) < 0).any()
    assert (objective("generalised_kl").loss(at) >= 0).all()


@pytest.mark.parametrize("outside", OUTSIDE)
def test_jsd_acts_as_the_forward_kl_at_a_small_beta_and_as_the_reverse_at_a_large_one(outside: Outside) -> None:
    student_NV, teacher_NV = random_pair(5, 9)
    at = positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(4, dim=1).indices)
    columns = (at.student_logprobs_NK, at.teacher_logprobs_NK, at.teacher_log_tail_N)
    reverse = {"renormalise": "lsm", "tail_bucket": "tail_bucket", "truncate": "truncated"}[outside]
    # Of unnormalised sums the other term, p log(p/m) or q log(q/m), leaves the difference of the masses behind.
    missing_N = (at.student_logprobs_NK.exp().sum(dim=1) - at.teacher_logprobs_NK.exp().sum(dim=1)).where(
        torch.tensor(outside == "truncate"), torch.tensor(0.0, dtype=torch.float64)
    )
    small, large = 1e-7, 1 - 1e-7
    near_0_N = jsd(*columns, beta=small, outside=outside) / small
    near_1_N = jsd(*columns, beta=large, outside=outside) / (1 - large)
    torch.testing.assert_close(near_0_N, forward(*columns, outside=outside) + missing_N, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(near_1_N, objective(reverse).loss(at) - missing_N, rtol=1e-4, atol=1e-6)


def test_jsd_at_one_half_is_symmetric_and_log_2_for_disjoint_models() -> None:
    one = torch.tensor([[0.0, -200.0]], dtype=torch.float64)
    other = torch.tensor([[-200.0, 0.0]], dtype=torch.float64)
    none = torch.tensor([float("-inf")], dtype=torch.float64)
    for student, teacher in ((one, other), (other, one)):
        loss_N = jsd(student, teacher, none, beta=0.5, outside="tail_bucket")
        assert loss_N.item() == pytest.approx(0.6931471805599453, abs=1e-12)


def test_tail_bucket_reads_the_tail_that_the_teacher_sent() -> None:
    # At mass 0 the student is all in the tail: the loss is -log Q, whatever the support says.
    student = torch.full((2, 3), -200.0)
    teacher = torch.tensor([[-1.0, -2.0, -3.0]]).expand(2, 3)
    tail_N = torch.tensor([-0.7, -4.0])
    torch.testing.assert_close(tail_bucket(student, teacher, tail_N), -tail_N)


@pytest.mark.parametrize("tail", [float("-inf"), -1000.0, -87.4])
def test_a_teacher_tail_below_the_smallest_fp32_counts_as_that(tail: float) -> None:
    loss_N = tail_bucket(torch.full((1, 3), -200.0), torch.zeros(1, 3), torch.tensor([tail]))
    assert loss_N.item() == pytest.approx(87.3365447, abs=1e-5)
