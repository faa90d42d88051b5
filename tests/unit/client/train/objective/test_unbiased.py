"""Over tokens drawn from the student, sampled objectives have the gradient of the dense reverse KL in expectation."""

# N = positions, K = support size, V = vocabulary

from __future__ import annotations

import pytest
import torch

from tests.unit.client.train.objective.cases import dense_reverse_kl, objective, positions_of, random_pair

STUDENT_V, TEACHER_V = (pair[0] for pair in random_pair(1, 7, seed=5))
P_V = torch.softmax(STUDENT_V, dim=0)
SUPPORT = torch.tensor([0, 3, 5])


def _losses_and_gradients(
    name: str, sampled_N: torch.Tensor, *, old_V: torch.Tensor = P_V
) -> tuple[torch.Tensor, torch.Tensor]:
    """One position per sampled token: its loss, [N], and the gradient to its logits, [N, V]."""
    leaf_NV = STUDENT_V.repeat(len(sampled_N), 1).requires_grad_()
    positions = positions_of(
        leaf_NV,
        TEACHER_V.expand(len(sampled_N), 7),
        ids_NK=SUPPORT.expand(len(sampled_N), 3),
        sampled_N=sampled_N,
        old_logprobs_N=old_V.log()[sampled_N],
    )
    loss_N = objective(name).loss(positions)
    return loss_N.detach(), torch.autograd.grad(loss_N.sum(), leaf_NV)[0]


def _dense_gradient() -> torch.Tensor:
    leaf_V = STUDENT_V.clone().requires_grad_()
    (gradient_V,) = torch.autograd.grad(dense_reverse_kl(leaf_V[None], TEACHER_V[None]).sum(), leaf_V)
    assert gradient_V.abs().min() > 1e-3
    return gradient_V


@pytest.mark.parametrize("name", ["sampled_token", "ema_pg"])
def test_expected_gradient_over_every_token_is_the_dense_one(name: str) -> None:
    _, gradient_VV = _losses_and_gradients(name, torch.arange(7))
    torch.testing.assert_close(P_V @ gradient_VV, _dense_gradient(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sampled_token", "ema_pg"])
def test_mean_gradient_over_drawn_tokens_is_the_dense_one_within_three_standard_errors(name: str) -> None:
    drawn_N = torch.multinomial(P_V, 50_000, replacement=True, generator=torch.Generator().manual_seed(0))
    _, gradient_NV = _losses_and_gradients(name, drawn_N)
    error_V = gradient_NV.std(dim=0) / 50_000**0.5
    assert (error_V > 0).all()
    assert ((gradient_NV.mean(dim=0) - _dense_gradient()).abs() <= 3 * error_V).all()


def test_expected_value_of_ema_pg_is_the_dense_reverse_kl() -> None:
    loss_V, _ = _losses_and_gradients("ema_pg", torch.arange(7))
    torch.testing.assert_close(P_V @ loss_V, dense_reverse_kl(STUDENT_V[None], TEACHER_V[None])[0])


def test_ema_pg_stays_unbiased_for_tokens_of_another_student_while_ratios_are_below_the_bound() -> None:
    old_V = torch.softmax(STUDENT_V + torch.linspace(-0.3, 0.3, 7, dtype=torch.float64), dim=0)
    assert (P_V / old_V).max() < 2
    loss_V, gradient_VV = _losses_and_gradients("ema_pg", torch.arange(7), old_V=old_V)
    torch.testing.assert_close(old_V @ gradient_VV, _dense_gradient(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(old_V @ loss_V, dense_reverse_kl(STUDENT_V[None], TEACHER_V[None])[0])


def _published_ema_pg(log_p_V: torch.Tensor, y: int) -> torch.Tensor:
    """arXiv 2602.04417 and its `compute_memory_efficient_kl`: exact head, and a policy gradient on y outside it."""
    head = (log_p_V[SUPPORT].exp() * (log_p_V - TEACHER_V)[SUPPORT]).sum()
    if y in SUPPORT.tolist():
        return head
    return head + (log_p_V[y] - log_p_V[y].detach()).exp() * (log_p_V[y] - TEACHER_V[y]).detach()


def test_ema_pg_as_published_is_off_by_the_gradient_of_the_mass_in_the_support() -> None:
    leaf_V = STUDENT_V.clone().requires_grad_()
    log_p_V = torch.log_softmax(leaf_V, dim=0)
    expected_loss = sum((P_V[y] * _published_ema_pg(log_p_V, y) for y in range(7)), torch.zeros(()))
    (published_V,) = torch.autograd.grad(expected_loss, leaf_V, retain_graph=True)
    (of_mass_V,) = torch.autograd.grad(log_p_V[SUPPORT].exp().sum(), leaf_V)
    torch.testing.assert_close(published_V - _dense_gradient(), of_mass_V, rtol=1e-12, atol=1e-12)
    assert of_mass_V.abs().max() > 0.02
    # Its value is right, which is why the bias does not show in a curve.
    torch.testing.assert_close(expected_loss.detach(), dense_reverse_kl(STUDENT_V[None], TEACHER_V[None])[0])


def test_tokens_drawn_with_top_p_bias_sampled_objectives() -> None:
    # The three likeliest tokens, renormalised: what a rollout with top-p writes. The old logprobs are the full ones.
    kept = P_V.topk(3).indices
    drawn_V = torch.zeros_like(P_V).scatter_(0, kept, P_V[kept] / P_V[kept].sum())
    for name in ("sampled_token", "ema_pg"):
        _, gradient_VV = _losses_and_gradients(name, torch.arange(7))
        assert ((drawn_V @ gradient_VV) - _dense_gradient()).abs().max() > 0.01
