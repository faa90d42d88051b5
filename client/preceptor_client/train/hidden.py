"""One forward of the student over prompts and responses: the hidden states that predict the scored tokens."""

# B = responses, T = padded tokens, P = tokens of the shared prefix, N = scored positions, D = hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from preceptor_client.train.flat import flat_hidden_states, flat_row
from preceptor_client.train.prefix import usable_prefix_length
from preceptor_client.train.student import Student


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSequence:
    """A prompt, a response, and the indices of the response tokens that have a score."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    positions_N: npt.NDArray[np.int64]


def scored_hidden_states(student: Student, sequences: Sequence[ScoredSequence]) -> torch.Tensor:
    """Hidden states of the rows that predict the scored tokens, shape [N, D], in the order of the sequences."""
    states, rows_N = (_flat if student.runs_flat else _padded)(student, sequences)
    scored_ND: torch.Tensor = states.index_select(0, torch.from_numpy(rows_N).to(student.device))
    return scored_ND


def _flat(student: Student, sequences: Sequence[ScoredSequence]) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """States of all tokens without padding, whatever the prompts have in common computed once; and the rows of them
    that are wanted."""
    length_P = usable_prefix_length(student, [one.prompt_ids for one in sequences])
    rests = [_inputs(one)[length_P:] for one in sequences]
    row = flat_row(sequences[0].prompt_ids[:length_P], rests, device=student.device)
    rows = [_wanted(one) + start - length_P for one, start in zip(sequences, row.starts_B, strict=True)]
    return flat_hidden_states(student.model, row), np.concatenate(rows)


def _padded(student: Student, sequences: Sequence[ScoredSequence]) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """The same, padded to the right: for models that keep more than keys and values of all tokens, and for those whose
    attention does something of its own."""
    inputs = [_inputs(one) for one in sequences]
    length_T = max(map(len, inputs))
    ids_BT = torch.full((len(inputs), length_T), student.pad_token_id)
    mask_BT = torch.zeros((len(inputs), length_T), dtype=torch.long)
    for index, ids in enumerate(inputs):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        mask_BT[index, : len(ids)] = 1
    states_BTD: torch.Tensor = student.base(
        ids_BT.to(student.device), attention_mask=mask_BT.to(student.device), use_cache=False
    ).last_hidden_state
    rows = [index * length_T + _wanted(one) for index, one in enumerate(sequences)]
    return states_BTD.flatten(0, 1), np.concatenate(rows)


def _inputs(one: ScoredSequence) -> list[int]:
    """The last token of a response predicts nothing that is scored."""
    return [*one.prompt_ids, *one.response_ids[:-1]]


def _wanted(one: ScoredSequence) -> npt.NDArray[np.int64]:
    """Response token t is predicted by the token before it, which lies at len(prompt) + t - 1."""
    return len(one.prompt_ids) - 1 + one.positions_N
