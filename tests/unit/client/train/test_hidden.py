from __future__ import annotations

import numpy as np
import pytest
import torch
from preceptor_client.train.student import hidden
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.prefix import shared_prefix_length
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.ways import Training

from tests.unit.client.train.tiny import run_as

SEQUENCES = [
    ScoredSequence(prompt_ids=[1, 2, 3, 4], response_ids=[5, 6, 7], positions_N=np.array([0, 1, 2])),
    ScoredSequence(prompt_ids=[1, 2, 9], response_ids=[8], positions_N=np.array([0])),
    ScoredSequence(prompt_ids=[1, 2, 3, 4, 10, 11], response_ids=[5, 5, 5, 5], positions_N=np.array([1, 3])),
]


def _one_by_one(student: Student) -> torch.Tensor:
    rows = []
    for one in SEQUENCES:
        ids_1T = torch.tensor([[*one.prompt_ids, *one.response_ids]])
        states_TD = student.model.base_model(ids_1T, use_cache=False).last_hidden_state[0]
        rows.append(states_TD[len(one.prompt_ids) - 1 + torch.from_numpy(one.positions_N)])
    return torch.cat(rows)


@pytest.fixture(params=["flat", "flat, nothing shared", "padded", "one at a time"])
def way(request: pytest.FixtureRequest, student: Student, monkeypatch: pytest.MonkeyPatch) -> Student:
    """The student, and each way through it."""
    assert student.ways.up_to(1).training is Training.FLAT
    assert shared_prefix_length([one.prompt_ids for one in SEQUENCES]) == 2
    if request.param == "flat, nothing shared":
        monkeypatch.setattr(hidden, "shared_prefix_length", lambda prompts: 0)
    training = {"padded": Training.PADDED, "one at a time": Training.ALONE}.get(request.param, Training.FLAT)
    return run_as(student, training)


def test_rows_equal_unpadded_forwards(way: Student) -> None:
    # fp32 through two layers; other shapes round differently.
    torch.testing.assert_close(scored_hidden_states(way, SEQUENCES), _one_by_one(way), atol=2e-5, rtol=2e-5)


def test_one_sequence_alone_equals_its_forward(way: Student) -> None:
    together = scored_hidden_states(way, SEQUENCES)
    alone = torch.cat([scored_hidden_states(way, [one]) for one in SEQUENCES])
    torch.testing.assert_close(alone, together, atol=2e-5, rtol=2e-5)


def test_the_models_own_attention_is_as_it_was(student: Student) -> None:
    before = student.model.config._attn_implementation
    scored_hidden_states(student, SEQUENCES)
    assert student.model.config._attn_implementation == before != "preceptor_flat"


def test_gradients_equal_those_of_unpadded_forwards(way: Student) -> None:
    student = way
    parameters = list(student.model.parameters())
    weights_ND = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((scored_hidden_states(student, SEQUENCES) * weights_ND).sum(), parameters)
    theirs = torch.autograd.grad((_one_by_one(student) * weights_ND).sum(), parameters)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1], [1, 2]], 0),
        ([[5, 1], [6, 1]], 0),
        ([[1, 2, 3]], 0),
    ],
)
def test_shared_prefix_leaves_each_prompt_its_last_token(prompts: list[list[int]], length: int) -> None:
    assert shared_prefix_length(prompts) == length
