from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from preceptor_client.train.student.head import Head, dense, sparse
from preceptor_client.train.student.head import head as head_module

from tests.unit.client.train.head.heads import (
    HEADS,
    HIDDEN_SIZE,
    NUM_POSITIONS,
    VOCABULARY_SIZE,
    dense_logits,
    hidden_states,
    linear,
    trained,
)

# N = positions, K = tokens per position, V = vocabulary, D = hidden size


@pytest.fixture(params=HEADS)
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Head:
    """In chunks of two or three positions, and rows of the gradient four at a time."""
    monkeypatch.setattr(sparse, "CHUNK_ELEMENTS", {"cpu": 40})
    monkeypatch.setattr(sparse, "ROWS_PER_SCATTER", 4)
    monkeypatch.setattr(dense, "CHUNK_ELEMENTS", 3 * VOCABULARY_SIZE)
    return HEADS[str(request.param)]()


@pytest.fixture(params=["rows", "whole products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the logits of some tokens: reading their rows, or all of them."""
    monkeypatch.setattr(head_module, "DENSE_SHARE", 0 if request.param == "rows" else VOCABULARY_SIZE)


def _ids(*, width: int = 4) -> torch.Tensor:
    """Ids that repeat across rows, and within one."""
    ids_NK = torch.randint(0, VOCABULARY_SIZE, (NUM_POSITIONS, width), generator=torch.Generator().manual_seed(2))
    ids_NK[1, 1:] = ids_NK[1, 0]
    return ids_NK


@pytest.mark.usefixtures("way")
def test_logits_at_some_tokens_are_the_modules_own(head: Head) -> None:
    hidden_ND, ids_NK = hidden_states(), _ids()
    torch.testing.assert_close(head.logits_at(hidden_ND, ids_NK), dense_logits(head, hidden_ND).gather(1, ids_NK))


@pytest.mark.usefixtures("way")
def test_gradients_of_logits_at_some_tokens_are_the_modules_own(head: Head) -> None:
    hidden_ND, ids_NK = hidden_states(), _ids()
    inputs = trained(head, hidden_ND)
    ours = torch.autograd.grad(head.logits_at(hidden_ND, ids_NK).square().sum(), inputs)
    theirs = torch.autograd.grad(dense_logits(head, hidden_ND).gather(1, ids_NK).square().sum(), inputs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


@pytest.mark.usefixtures("way")
def test_logits_at_some_tokens_pass_a_gradient_check(head: Head) -> None:
    hidden_ND, ids_NK = hidden_states(), _ids()
    assert torch.autograd.gradcheck(lambda *_: head.logits_at(hidden_ND, ids_NK), trained(head, hidden_ND))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_partition_is_the_dense_one(head: Head, temperature: float) -> None:
    hidden_ND = hidden_states()
    expected_N = torch.logsumexp(dense_logits(head, hidden_ND) / temperature, dim=1)
    torch.testing.assert_close(head.log_partition(hidden_ND, temperature=temperature), expected_N)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradients_of_the_log_partition_are_the_dense_ones(head: Head, temperature: float) -> None:
    hidden_ND = hidden_states()
    inputs = trained(head, hidden_ND)
    ours = torch.autograd.grad(head.log_partition(hidden_ND, temperature=temperature).square().sum(), inputs)
    dense_N = torch.logsumexp(dense_logits(head, hidden_ND) / temperature, dim=1)
    theirs = torch.autograd.grad(dense_N.square().sum(), inputs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_log_partition_passes_a_gradient_check(head: Head) -> None:
    hidden_ND = hidden_states()
    assert torch.autograd.gradcheck(lambda *_: head.log_partition(hidden_ND), trained(head, hidden_ND))


def test_all_logits_are_the_modules_own(head: Head) -> None:
    hidden_ND = hidden_states()
    logits_NV = head.logits(hidden_ND)
    torch.testing.assert_close(logits_NV, dense_logits(head, hidden_ND).detach())
    assert not logits_NV.requires_grad


def test_a_frozen_matrix_gets_no_gradient() -> None:
    module = linear(bias=True)
    module.requires_grad_(False)
    hidden_ND = hidden_states()
    head = Head(module=module)
    (head.logits_at(hidden_ND, _ids()).sum() + head.log_partition(hidden_ND).sum()).backward()  # type: ignore[no-untyped-call]
    assert module.weight.grad is None
    assert hidden_ND.grad is not None


@pytest.mark.usefixtures("way")
def test_half_precision_is_added_up_in_single_precision() -> None:
    """Exact products of bf16 numbers in fp32; bf16 sums of five would be off by up to 2^-8 of them."""
    module, hidden_ND = linear(bias=True, dtype=torch.bfloat16), hidden_states(dtype=torch.bfloat16)
    head, ids_NK = Head(module=module), _ids()
    exact = torch.nn.Linear(HIDDEN_SIZE, VOCABULARY_SIZE, dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    exact_ND = hidden_ND.detach().double().requires_grad_()
    logits_NK = head.logits_at(hidden_ND, ids_NK)
    assert logits_NK.dtype == torch.float32
    torch.testing.assert_close(logits_NK.double(), exact(exact_ND).gather(1, ids_NK), atol=1e-5, rtol=1e-5)
    log_z_N = head.log_partition(hidden_ND)
    torch.testing.assert_close(log_z_N.double(), exact(exact_ND).logsumexp(dim=1), atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(logits_NK.square().sum() + log_z_N.sum(), [hidden_ND, module.weight])
    dense_NV = exact(exact_ND)
    loss = dense_NV.gather(1, ids_NK).square().sum() + dense_NV.logsumexp(dim=1).sum()
    theirs = torch.autograd.grad(loss, [exact_ND, exact.weight])
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.bfloat16
        # One rounding to bf16 for each of the two losses, and one for their sum.
        torch.testing.assert_close(our.double(), their, atol=0.05, rtol=3 * 2.0**-9)


def test_a_tied_embedding_gets_both_gradients() -> None:
    """The matrix is read as an embedding and as a head: the gradients add up."""
    module = linear()
    ids_N = torch.arange(NUM_POSITIONS)

    def loss(logits_at: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        hidden_ND = torch.nn.functional.embedding(ids_N, module.weight).tanh()
        return logits_at(hidden_ND).square().sum()

    (ours,) = torch.autograd.grad(loss(lambda x: Head(module=module).logits_at(x, _ids())), [module.weight])
    (theirs,) = torch.autograd.grad(loss(lambda x: module(x).gather(1, _ids())), [module.weight])
    torch.testing.assert_close(ours, theirs)
