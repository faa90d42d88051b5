"""The student's head and its forward without padding on a CUDA device, against float64 on the CPU."""

# N = positions, K = tokens per position, V = vocabulary, D = hidden size

from __future__ import annotations

import numpy as np
import pytest
import torch
from preceptor_client.train.student.head import Head
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import prepare_student
from preceptor_client.train.student.ways import Training

from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.client.train.tiny import run_as

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Of the largest entry: TF32 is off by default, bf16 rounds gradients to 2^-8."""


@pytest.mark.parametrize("num_ids", [32, 3000], ids=["rows", "whole products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_on_cuda_agrees_with_double_precision(dtype: torch.dtype, num_ids: int) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.nn.Linear(64, 5000, dtype=torch.float64)
    with torch.no_grad():
        exact.weight.copy_(torch.randn(5000, 64, generator=generator))
        exact.weight.copy_(exact.weight.to(dtype))
        exact.bias.copy_(exact.bias.to(dtype))
    ours = torch.nn.Linear(64, 5000, dtype=dtype, device="cuda")
    ours.load_state_dict(exact.state_dict())
    exact_ND = torch.randn(300, 64, generator=generator).to(dtype).double().requires_grad_()
    hidden_ND = exact_ND.detach().to("cuda", dtype).requires_grad_()
    ids_NK = torch.randint(0, 5000, (300, num_ids), generator=generator)
    head = Head(module=ours, softcap=30.0)
    value = head.logits_at(hidden_ND, ids_NK.cuda()).square().mean() + head.log_partition(hidden_ND).mean()
    dense_NV = 30.0 * torch.tanh(exact(exact_ND) / 30.0)
    expected = dense_NV.gather(1, ids_NK).square().mean() + dense_NV.logsumexp(dim=1).mean()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    gradients = torch.autograd.grad(value, [hidden_ND, ours.weight, ours.bias])
    theirs = torch.autograd.grad(expected, [exact_ND, exact.weight, exact.bias])
    for our, their in zip(gradients, theirs, strict=True):
        assert (our.double().cpu() - their).abs().max() <= TOLERANCE[dtype] * their.abs().max()


def test_forward_without_padding_agrees_with_the_padded_one() -> None:
    student = prepare_student(tiny_llama(spread=0.3), tiny_tokenizer(), device=torch.device("cuda"))
    assert student.ways.up_to(1).training is Training.FLAT
    rng = np.random.default_rng(0)
    shared = rng.integers(3, 259, 9).tolist()
    sequences = [
        ScoredSequence(
            prompt_ids=[*shared, *rng.integers(3, 259, 2 + index).tolist()],
            response_ids=rng.integers(3, 259, 1 + 5 * index).tolist(),
            positions_N=np.arange(1 + 5 * index),
        )
        for index in range(5)
    ]
    flat, padded = (
        scored_hidden_states(run_as(student, training), sequences) for training in (Training.FLAT, Training.PADDED)
    )
    torch.testing.assert_close(flat, padded, atol=1e-3, rtol=1e-3)
