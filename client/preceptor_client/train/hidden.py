"""One forward of the student over prompts and responses: the hidden states that predict the scored tokens."""

# B = responses, T = padded tokens after the shared prefix, P = tokens of the shared prefix, N = scored positions,
# D = hidden size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from preceptor_client.train.prefix import prefix_cache, usable_prefix_length
from preceptor_client.train.student import Student


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSequence:
    """A prompt, a response, and the indices of the response tokens that have a score."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    positions_N: npt.NDArray[np.int64]


def scored_hidden_states(student: Student, sequences: Sequence[ScoredSequence]) -> torch.Tensor:
    """Hidden states of the rows that predict the scored tokens, shape [N, D], in the order of the sequences.

    Right-padded. Whatever the prompts have in common is computed once for the whole batch.
    """
    length_P = usable_prefix_length(student, [sequence.prompt_ids for sequence in sequences])
    # The last token of a response predicts nothing that is scored.
    inputs = [[*one.prompt_ids[length_P:], *one.response_ids[:-1]] for one in sequences]
    length_T = max(map(len, inputs))
    ids_BT = torch.full((len(inputs), length_T), student.pad_token_id)
    mask_BT = torch.zeros((len(inputs), length_P + length_T), dtype=torch.long)
    rows: list[npt.NDArray[np.int64]] = []
    for index, (ids, one) in enumerate(zip(inputs, sequences, strict=True)):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        mask_BT[index, : length_P + len(ids)] = 1
        # Response token t is predicted by the token before it, which lies at len(prompt) + t - 1.
        rows.append(index * length_T + len(one.prompt_ids) - length_P - 1 + one.positions_N)
    cache = None
    if length_P:
        cache = prefix_cache(student, sequences[0].prompt_ids[:length_P], batch_size=len(inputs))
    hidden_BTD = student.base(
        ids_BT.to(student.device),
        attention_mask=mask_BT.to(student.device),
        position_ids=torch.arange(length_P, length_P + length_T, device=student.device).unsqueeze(0),
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state
    rows_N = torch.from_numpy(np.concatenate(rows)).to(student.device)
    states_ND: torch.Tensor = hidden_BTD.flatten(0, 1).index_select(0, rows_N)
    return states_ND
