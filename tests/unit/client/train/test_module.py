"""The outputs of the student's one module, against whole distributions in float64."""

# N = scored positions, T = tokens of a text, K = tokens per position, M = rows whose logits are wanted whole,
# V = vocabulary

from __future__ import annotations

import numpy as np
import pytest
import torch
from preceptor_client.train.student import module as student_module
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.module import TokenLogprobs, TokenQuery
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.ways import Training

from tests.unit.client.train.tiny import run_as, tiny_student

TEMPERATURE = 0.7
SEQUENCES = [
    ScoredSequence(prompt_ids=[1, 2, 3, 4], response_ids=[5, 6, 7], positions_N=np.array([0, 1, 2])),
    ScoredSequence(prompt_ids=[1, 2, 9], response_ids=[8], positions_N=np.array([0])),
    ScoredSequence(prompt_ids=[1, 2, 3, 4, 10, 11], response_ids=[5, 5, 5, 5], positions_N=np.array([1, 3])),
]
SAMPLED = [5, 6, 7, 8, 5, 5]
IDS_NK = torch.tensor([[position, 40 + 30 * position, 258] for position in range(len(SAMPLED))])


def _query(*, needs_normaliser: bool) -> TokenQuery:
    return TokenQuery(
        ids_NK=IDS_NK,
        sampled_ids_N=torch.tensor(SAMPLED),
        temperature=TEMPERATURE,
        needs_normaliser=needs_normaliser,
    )


@torch.no_grad()
def _dense_logits(student: Student) -> torch.Tensor:
    """By forwards of single texts, [N, V] in float64."""
    rows = []
    for one in SEQUENCES:
        logits_TV = student.model(torch.tensor([[*one.prompt_ids, *one.response_ids]])).logits[0].double()
        rows.append(logits_TV[len(one.prompt_ids) - 1 + torch.from_numpy(one.positions_N)])
    return torch.cat(rows)


def _assert_close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """fp32 through two layers."""
    torch.testing.assert_close(ours.double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("training", Training)
def test_logprobs_with_the_normaliser_are_those_of_whole_distributions(student: Student, training: Training) -> None:
    logprobs_NV = torch.log_softmax(_dense_logits(student) / TEMPERATURE, dim=1)
    partition_N = torch.logsumexp(_dense_logits(student) / TEMPERATURE, dim=1)
    tokens = run_as(student, training).module(SEQUENCES, _query(needs_normaliser=True)).tokens
    assert tokens is not None
    assert tokens.log_partition_N is not None
    _assert_close(tokens.logprobs_NK, logprobs_NV.gather(1, IDS_NK))
    _assert_close(tokens.sampled_logprobs_N, logprobs_NV.gather(1, torch.tensor(SAMPLED)[:, None])[:, 0])
    _assert_close(tokens.log_partition_N, partition_N)


def test_logprobs_without_the_normaliser_are_logits_over_the_temperature(student: Student) -> None:
    outputs = student.module(SEQUENCES, _query(needs_normaliser=False))
    assert outputs.tokens is not None
    assert outputs.tokens.log_partition_N is outputs.values_N is outputs.dense_logits_MV is None
    expected_NK = _dense_logits(student).gather(1, IDS_NK) / TEMPERATURE
    _assert_close(outputs.tokens.logprobs_NK, expected_NK)


def test_dense_logits_are_those_of_the_rows_that_were_asked_for(student: Student) -> None:
    outputs = student.module(SEQUENCES, dense_rows_M=np.array([1, 4]))
    assert outputs.tokens is None
    assert outputs.dense_logits_MV is not None
    assert not outputs.dense_logits_MV.requires_grad
    _assert_close(outputs.dense_logits_MV, _dense_logits(student)[[1, 4]])


def test_hidden_states_are_those_before_the_head_and_have_no_gradient(student: Student) -> None:
    hidden_ND = student.module(SEQUENCES).hidden_ND
    assert not hidden_ND.requires_grad
    assert torch.equal(hidden_ND, scored_hidden_states(student, SEQUENCES))


def test_a_part_of_the_logprobs_at_a_time_is_made_and_made_again_in_the_backward(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What exists at once is one part, and the values and gradients are those of the whole."""
    parts: list[tuple[int, int]] = []

    def weighted(tokens: TokenLogprobs, rows: slice) -> torch.Tensor:
        weights_N = torch.arange(1.0, len(SAMPLED) + 1)[rows]
        parts.append((rows.start or 0, len(tokens.logprobs_NK)))
        return weights_N * (tokens.logprobs_NK.exp().sum(dim=1) + tokens.sampled_logprobs_N)

    def values_and_gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        values_N = student.module(SEQUENCES, _query(needs_normaliser=True), then=weighted).values_N
        assert values_N is not None
        return values_N.detach(), list(torch.autograd.grad(values_N.sum(), list(student.module.parameters())))

    whole = values_and_gradients()
    assert parts == [(0, 6)]
    parts.clear()
    monkeypatch.setattr(student_module, "ENTRIES_AT_ONCE", 4 * IDS_NK.shape[1])
    in_parts = values_and_gradients()
    assert parts[:2] == [(0, 4), (4, 2)]
    assert sorted(parts[2:]) == [(0, 4), (4, 2)]
    # Matrix products of other shapes round differently.
    torch.testing.assert_close(in_parts[0], whole[0], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(in_parts[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_modules_parameters_are_the_models_in_the_models_order(tied: bool) -> None:
    """An optimizer's state goes by the order: a checkpoint of the model's parameters fits those of the module."""
    student = tiny_student(tied=tied)
    ours, theirs = list(student.module.named_parameters()), list(student.model.named_parameters())
    assert [name for name, _ in ours] == [f"model.{name}" for name, _ in theirs]
    assert all(our is their for (_, our), (_, their) in zip(ours, theirs, strict=True))
    assert student.module.training is student.model.training is False
