"""One forward of the student over prompts and responses: the hidden states that predict the scored tokens."""

# P = tokens of the shared prefix, N = scored positions, D = hidden size

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from preceptor_client.train.student.flat import flat_hidden_states, flat_row
from preceptor_client.train.student.padded import padded_hidden_states
from preceptor_client.train.student.prefix import shared_prefix_length
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.ways import KnownWays, Training


class RunnableModel(Protocol):
    """A model, and how its batches are run."""

    @property
    def model(self) -> PreTrainedModel: ...

    @property
    def ways(self) -> KnownWays: ...

    @property
    def pad_token_id(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


def scored_hidden_states(student: RunnableModel, sequences: Sequence[ScoredSequence]) -> torch.Tensor:
    """Hidden states of the rows that predict the scored tokens, shape [N, D], in the order of the sequences."""
    inputs = [_inputs(one) for one in sequences]
    training = student.ways.up_to(max(map(len, inputs))).training
    if training is Training.FLAT:
        states, rows_N = _flat(student, sequences)
    elif training is Training.PADDED:
        states_BTD = padded_hidden_states(student.model, inputs, pad_token_id=student.pad_token_id)
        starts = range(0, states_BTD.shape[0] * states_BTD.shape[1], states_BTD.shape[1])
        states, rows_N = states_BTD.flatten(0, 1), _rows(sequences, starts)
    else:
        alone = [padded_hidden_states(student.model, [ids], pad_token_id=student.pad_token_id)[0] for ids in inputs]
        starts = np.cumsum([0, *map(len, inputs[:-1])]).tolist()
        states, rows_N = torch.cat(alone), _rows(sequences, starts)
    scored_ND: torch.Tensor = states.index_select(0, torch.from_numpy(rows_N).to(student.device))
    return scored_ND


def _flat(student: RunnableModel, sequences: Sequence[ScoredSequence]) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """States of all tokens without padding, whatever the prompts have in common computed once; and the rows of them
    that are wanted."""
    length_P = shared_prefix_length([one.prompt_ids for one in sequences])
    rests = [_inputs(one)[length_P:] for one in sequences]
    row = flat_row(sequences[0].prompt_ids[:length_P], rests, device=student.device)
    return flat_hidden_states(student.model, row), _rows(sequences, [start - length_P for start in row.starts_B])


def _rows(sequences: Sequence[ScoredSequence], starts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where the wanted states stand, each sequence beginning at its start."""
    return np.concatenate([_wanted(one) + start for one, start in zip(sequences, starts, strict=True)])


def _inputs(one: ScoredSequence) -> list[int]:
    """The last token of a response predicts nothing that is scored."""
    return [*one.prompt_ids, *one.response_ids[:-1]]


def _wanted(one: ScoredSequence) -> npt.NDArray[np.int64]:
    """Response token t is predicted by the token before it, which lies at len(prompt) + t - 1."""
    return len(one.prompt_ids) - 1 + one.positions_N
