"""Two ways to the hidden states of a batch: all of it in one forward, or every response by itself."""

# N = scored positions of a batch, T = tokens of a response, D = hidden size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from preceptor_server.engines.hf import packed_attention
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.memory import ForwardSize
from preceptor_server.engines.hf.packing import PackedBatch, pack
from preceptor_server.engines.hf.rope import LengthDependentRope, Regime
from preceptor_server.types import ScoreGroup


class Forwards(Protocol):
    """Computes the hidden states that the output embedding reads."""

    @property
    def packing(self) -> str:
        """Its name in the settings."""

    @property
    def repeats_prompts(self) -> bool:
        """Whether each response of a group computes its prompt again."""

    def sizes(self, batch: Sequence[ScoreGroup]) -> list[ForwardSize]:
        """Of all forwards that the batch takes."""

    def hidden_states(self, batch: Sequence[ScoreGroup]) -> torch.Tensor:
        """Those that predict the scored tokens, [N, D], in the order of the batch."""


class PackedForwards:
    """One forward for a batch, with every shared prefix once; one for each regime where the rope has several."""

    packing = "packed"
    repeats_prompts = False

    def __init__(self, model: LoadedModel) -> None:
        """Raises UnsupportedAttentionError where the architecture computes attention by itself."""
        model.use_attention(packed_attention.IMPLEMENTATION)
        self._model = model

    def hidden_states(self, batch: Sequence[ScoreGroup]) -> torch.Tensor:
        if not self._model.rope:
            return self._of_batch(batch)
        parts = parts_of(batch, rope=self._model.rope)
        states_ND = torch.cat([self._of_batch(part.groups) for part in parts])
        order_N = np.argsort(np.concatenate([part.rows_N for part in parts]))
        return states_ND[torch.from_numpy(order_N).to(states_ND.device)]

    def sizes(self, batch: Sequence[ScoreGroup]) -> list[ForwardSize]:
        rope = self._model.rope
        batches = [part.groups for part in parts_of(batch, rope=rope)] if rope else [batch]
        return [_size_of(pack(one, keeps_last_tokens=bool(rope))) for one in batches]

    def _of_batch(self, batch: Sequence[ScoreGroup]) -> torch.Tensor:
        packed = pack(batch, keeps_last_tokens=bool(self._model.rope))
        with packed_attention.attending_within(packed.segments):
            hidden_FD = self._model.packed_hidden_states(
                torch.from_numpy(packed.token_ids_F), torch.from_numpy(packed.positions_F)
            )
        return hidden_FD[torch.from_numpy(packed.rows_N).to(hidden_FD.device)]


class SequentialForwards:
    """A forward for every response, as transformers runs it."""

    packing = "sequential"
    repeats_prompts = True

    def __init__(self, model: LoadedModel, *, attention: str) -> None:
        """`attention` is the implementation that transformers chose for the model."""
        model.use_attention(attention)
        self._model = model
        self._is_eager = attention == "eager"

    def sizes(self, batch: Sequence[ScoreGroup]) -> list[ForwardSize]:
        return [
            ForwardSize(
                num_tokens=len(group.prompt_ids_P) + len(response.ids_T),
                longest=len(group.prompt_ids_P) + len(response.ids_T),
                num_rows=int(response.score_mask_T.sum()),
                is_packed=False,
                is_eager=self._is_eager,
            )
            for group in batch
            for response in group.responses
        ]

    def hidden_states(self, batch: Sequence[ScoreGroup]) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        for group in batch:
            for response in group.responses:
                # Nothing is predicted from the last token, but a rope may depend on how many there are.
                inputs = response.ids_T if self._model.rope else response.ids_T[:-1]
                ids = torch.from_numpy(np.concatenate([group.prompt_ids_P, inputs]))
                first = len(group.prompt_ids_P) - 1
                hidden_TD = self._model.hidden_states(ids)[first : first + len(response.ids_T)]
                rows.append(hidden_TD[torch.from_numpy(response.score_mask_T).to(hidden_TD.device)])
        return torch.cat(rows)


def _size_of(packed: PackedBatch) -> ForwardSize:
    longest = max(segment.num_ancestor_tokens + len(segment.span) for segment in packed.segments)
    return ForwardSize(num_tokens=len(packed.token_ids_F), longest=longest, num_rows=len(packed.rows_N))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchPart:
    """Groups of a batch with those of their responses whose sequences have one regime."""

    groups: tuple[ScoreGroup, ...]
    rows_N: npt.NDArray[np.int64]
    """Where their rows stand among those of the batch."""


def parts_of(batch: Sequence[ScoreGroup], *, rope: LengthDependentRope) -> list[BatchPart]:
    """The batch by the regimes of its sequences; a prompt whose responses have several is in several parts."""
    groups: dict[Regime, list[ScoreGroup]] = {}
    rows: dict[Regime, list[npt.NDArray[np.int64]]] = {}
    num_rows = 0
    for group in batch:
        members: dict[Regime, list[int]] = {}
        for index, regime in enumerate(_regimes(group, rope)):
            members.setdefault(regime, []).append(index)
            num_own = int(group.responses[index].score_mask_T.sum())
            rows.setdefault(regime, []).append(np.arange(num_rows, num_rows + num_own))
            num_rows += num_own
        for regime, indices in members.items():
            part = replace(group, responses=tuple(group.responses[index] for index in indices))
            groups.setdefault(regime, []).append(part)
    return [BatchPart(groups=tuple(groups[regime]), rows_N=np.concatenate(rows[regime])) for regime in groups]


def responses_by_regime(group: ScoreGroup, *, rope: LengthDependentRope) -> list[list[int]]:
    """Indices of the responses whose sequences have one regime, for each regime."""
    members: dict[Regime, list[int]] = {}
    for index, regime in enumerate(_regimes(group, rope)):
        members.setdefault(regime, []).append(index)
    return list(members.values())


def _regimes(group: ScoreGroup, rope: LengthDependentRope) -> Iterator[Regime]:
    for response in group.responses:
        yield rope.regime(len(group.prompt_ids_P) + len(response.ids_T))
