"""The student as one `nn.Module`: its forward is the only use of its parameters in training, so that FSDP2,
DistributedDataParallel or accelerate can wrap it. Knows nothing of losses; generation has its own door, `generation`.

To shard it, the module itself must be a unit that holds the matrix of the output head: the head's rows are read without
a forward of the head's own module.
"""

# N = scored positions, K = tokens per position, M = positions whose logits are wanted whole, V = vocabulary,
# D = hidden size

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from preceptor_client.train.student.head import Head
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.ways import KnownWays

ENTRIES_AT_ONCE = 1 << 24
"""Entries of supports, N x K, whose gradients are kept; beyond them a part of the positions at a time is computed again
in the backward. Only full_vocabulary has as many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenQuery:
    """The tokens whose logprobs are wanted at the scored positions."""

    ids_NK: torch.Tensor
    sampled_ids_N: torch.Tensor
    """The tokens that were written."""
    temperature: float
    needs_normaliser: bool
    """True: logprobs over the whole vocabulary, which costs a dense head. False: up to a constant per position."""

    def rows(self, part: slice) -> TokenQuery:
        """At some of the positions."""
        return TokenQuery(
            ids_NK=self.ids_NK[part],
            sampled_ids_N=self.sampled_ids_N[part],
            temperature=self.temperature,
            needs_normaliser=self.needs_normaliser,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLogprobs:
    """Natural logprobs of the query's tokens at its temperature, with gradients."""

    logprobs_NK: torch.Tensor
    sampled_logprobs_N: torch.Tensor
    log_partition_N: torch.Tensor | None
    """What was subtracted from logits / temperature; None without the normaliser."""


PerPosition = Callable[[TokenLogprobs, slice], torch.Tensor]
"""Makes one number per position, [n], from the logprobs at the positions of the slice. Has no parameters."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentOutputs:
    """What one forward gave. A field that was not asked for is None."""

    hidden_ND: torch.Tensor
    """What the head was given at the scored positions, without gradients."""
    tokens: TokenLogprobs | None = None
    """None also where `then` was given them instead."""
    values_N: torch.Tensor | None = None
    """What `then` made of the logprobs, with gradients."""
    dense_logits_MV: torch.Tensor | None = None
    """Before the temperature, without gradients."""


class StudentForScoring(torch.nn.Module):
    """A causal language model and its head. Its parameters are the model's, in the model's order."""

    def __init__(self, model: PreTrainedModel, *, head: Head, ways: KnownWays, pad_token_id: int) -> None:
        """`head` is the one of `head_of(model)`, `ways` says how a batch is run."""
        super().__init__()
        self.model: PreTrainedModel = model
        self.head = head
        self.ways = ways
        self.pad_token_id = pad_token_id
        self.train(model.training)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(
        self,
        sequences: Sequence[ScoredSequence],
        query: TokenQuery | None = None,
        *,
        then: PerPosition | None = None,
        dense_rows_M: npt.NDArray[np.int64] | None = None,
    ) -> StudentOutputs:
        """Runs the model once. N are the scored positions of all sequences, in their order.

        `then` is applied to the logprobs inside the forward: to a part of the positions at a time where the query has
        many entries, and again in the backward, so that no more than a part of the logprobs exists at once.
        `dense_rows_M` are positions of which all logits are wanted."""
        hidden_ND = scored_hidden_states(self, sequences)
        tokens = values_N = None
        if query is not None and then is not None:
            values_N = self._values(hidden_ND, query, then)
        elif query is not None:
            tokens = self._logprobs(hidden_ND, query)
        return StudentOutputs(
            hidden_ND=hidden_ND.detach(),
            tokens=tokens,
            values_N=values_N,
            dense_logits_MV=None if dense_rows_M is None else self._dense_logits(hidden_ND, dense_rows_M),
        )

    if TYPE_CHECKING:  # torch types the call of a module as taking and returning anything
        __call__ = forward

    def _values(self, hidden_ND: torch.Tensor, query: TokenQuery, then: PerPosition) -> torch.Tensor:
        def values_of(hidden_CD: torch.Tensor, rows: slice) -> torch.Tensor:
            return then(self._logprobs(hidden_CD, query.rows(rows)), rows)

        size = max(1, ENTRIES_AT_ONCE // query.ids_NK.shape[1])
        if len(hidden_ND) <= size:
            return values_of(hidden_ND, slice(None))
        parts = [slice(start, start + size) for start in range(0, len(hidden_ND), size)]
        return torch.cat([checkpoint(values_of, hidden_ND[rows], rows, use_reentrant=False) for rows in parts])

    def _logprobs(self, hidden_ND: torch.Tensor, query: TokenQuery) -> TokenLogprobs:
        ids = torch.cat([query.ids_NK, query.sampled_ids_N[:, None]], dim=1)
        logprobs = self.head.logits_at(hidden_ND, ids) / query.temperature
        log_z_N = None
        if query.needs_normaliser:
            log_z_N = self.head.log_partition(hidden_ND, temperature=query.temperature)
            logprobs = logprobs - log_z_N[:, None]
        return TokenLogprobs(logprobs_NK=logprobs[:, :-1], sampled_logprobs_N=logprobs[:, -1], log_partition_N=log_z_N)

    @torch.no_grad()
    def _dense_logits(self, hidden_ND: torch.Tensor, rows_M: npt.NDArray[np.int64]) -> torch.Tensor:
        return self.head.logits(hidden_ND[torch.from_numpy(rows_M).to(hidden_ND.device)])
