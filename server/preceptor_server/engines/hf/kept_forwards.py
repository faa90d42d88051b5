"""The forwards of one group that is computed slice by slice, its prompt once: keys and values are kept between them."""

# F = flat tokens of a slice, N = scored positions of a slice, D = hidden size

from __future__ import annotations

import torch

from preceptor_server.engines.hf import packed_attention
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.kept_states import KeptStates
from preceptor_server.engines.hf.slicing import PROMPT_END, Slice, Slicing


class KeptForwards:
    """Of one slicing. What is kept may be dropped at any time: it is computed again, by the same forwards, so that no
    number depends on it."""

    def __init__(self, model: LoadedModel, slicing: Slicing) -> None:
        self._model = model
        self._slicing = slicing
        self._states: KeptStates | None = None
        self._present: set[int] = set()
        """Slices whose keys and values are in the states."""
        self._prompt_end_1D: torch.Tensor | None = None

    def num_tokens(self, index: int) -> int:
        """That the forward of a slice computes, with what has to be computed again for it."""
        return sum(self._slicing.slices[one].num_tokens for one in [*self._missing(index), index])

    def cost(self, index: int) -> float:
        """Of these tokens."""
        return sum(self._slicing.slices[one].cost for one in [*self._missing(index), index])

    def hidden_states(self, index: int) -> torch.Tensor:
        """Those that predict the scored tokens of a slice, [N, D]."""
        chosen = self._slicing.slices[index]
        for other in self._missing(index):
            self._forward(other)
        hidden_FD = self._forward(index)
        if not len(chosen.rows_N):
            return hidden_FD[:0]
        assert self._prompt_end_1D is not None, "the prompt comes before all responses"
        rows_N = torch.from_numpy(chosen.rows_N).to(hidden_FD.device)
        return torch.where((rows_N == PROMPT_END)[:, None], self._prompt_end_1D, hidden_FD[rows_N])

    def drop(self) -> None:
        """Forgets what was kept."""
        self._states = None
        self._present.clear()

    def _missing(self, index: int) -> list[int]:
        """The slices whose keys and values this one needs, and that are not kept."""
        return [other for other in self._slicing.slices[index].needs if other not in self._present]

    def _forward(self, index: int) -> torch.Tensor:
        chosen = self._slicing.slices[index]
        if self._states is None:
            self._states = KeptStates(capacity=self._slicing.capacity)
        with packed_attention.attending_within(chosen.segments, kept=self._states):
            hidden_FD = self._model.packed_hidden_states(
                torch.from_numpy(chosen.token_ids_F), torch.from_numpy(chosen.positions_F)
            )
        if any(segment.is_kept for segment in chosen.segments):
            self._present.add(index)
        if chosen.prompt_end is not None:
            self._prompt_end_1D = hidden_FD[chosen.prompt_end : chosen.prompt_end + 1].clone()
        return hidden_FD


def longest_of(chosen: Slice) -> int:
    """Tokens of the longest sequence of a slice, what was kept included."""
    return max(segment.num_ancestor_tokens + len(segment.span) for segment in chosen.segments)
