"""One forward over several sequences, padded to the right, where no token of a causal model looks."""

# B = sequences, T = padded tokens, D = hidden size

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from preceptor_client.train.student.head.body import states_before_head


def padded_hidden_states(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], *, pad_token_id: int
) -> torch.Tensor:
    """The states that the head is given, [B, T, D], with gradients; behind a sequence's end they mean nothing."""
    length_T = max(map(len, sequences))
    ids_BT = torch.full((len(sequences), length_T), pad_token_id)
    mask_BT = torch.zeros((len(sequences), length_T), dtype=torch.long)
    for index, ids in enumerate(sequences):
        ids_BT[index, : len(ids)] = torch.tensor(ids)
        mask_BT[index, : len(ids)] = 1
    device = next(model.parameters()).device
    return states_before_head(model, ids_BT.to(device), attention_mask=mask_BT.to(device))
