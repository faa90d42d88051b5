from __future__ import annotations

import pytest
import torch
from preceptor_client.train import head as head_module
from preceptor_client.train.head import log_partition, support_logits

# N = positions, K = support size, V = vocabulary, D = hidden size


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    """Seven positions in chunks of three, with ids that repeat within and across rows."""
    monkeypatch.setattr(head_module, "ROWS_PER_CHUNK", 3)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(5, 13, dtype=torch.float64)
    hidden_ND = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    return hidden_ND, head, torch.randint(0, 13, (7, 4), generator=generator)


def test_support_logits_equal_the_dense_head(parts: tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]) -> None:
    hidden_ND, head, ids_NK = parts
    torch.testing.assert_close(support_logits(hidden_ND, head, ids_NK), head(hidden_ND).gather(1, ids_NK))


def test_gradients_equal_those_of_the_dense_head(parts: tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]) -> None:
    hidden_ND, head, ids_NK = parts
    inputs = [hidden_ND, head.weight, head.bias]
    sparse = torch.autograd.grad(support_logits(hidden_ND, head, ids_NK).square().sum(), inputs)
    dense = torch.autograd.grad(head(hidden_ND).gather(1, ids_NK).square().sum(), inputs)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_log_partition_is_the_dense_logsumexp(parts: tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]) -> None:
    hidden_ND, head, _ = parts
    expected = torch.logsumexp(head(hidden_ND) / 0.5, dim=1).detach().float()
    torch.testing.assert_close(log_partition(hidden_ND, head, temperature=0.5), expected)
