"""Cuts a group into slices that cost at most so much, each a forward of its own. Numpy only: no model.

The prompt comes first, in chunks; then the responses, as many in a slice as it has room for. A response that no slice
has room for is cut into chunks too. What later slices attend to is *kept*: the prompt, and behind it the beginning of
the long response that is being computed. A slice computes a piece of at most one such response.
"""

# P = prompt tokens, T = tokens of a response, F = flat tokens of a slice, N = scored positions of a slice

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_server.context_costs import ContextCosts
from preceptor_server.engines.hf.packing import Segment, Span
from preceptor_server.types import ResponseToScore, ScoreGroup

PROMPT_END = -1
"""In place of a flat row: the last token of the prompt, which an earlier slice may have computed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """One forward. Row `rows_N[i]` of its hidden states predicts the i-th of the scored tokens that it answers; they
    follow those of the slice before, in the order of the group."""

    token_ids_F: TokenArray
    positions_F: npt.NDArray[np.int64]
    segments: tuple[Segment, ...]
    rows_N: npt.NDArray[np.int64]
    """PROMPT_END for the first tokens of responses."""
    prompt_end: int | None
    """The flat row of the prompt's last token, where it is computed here."""
    cost: float
    """Of its tokens, each with its context."""
    needs: tuple[int, ...]
    """The slices before it that kept what it attends to, in order."""

    @property
    def num_tokens(self) -> int:
        """That it computes."""
        return len(self.token_ids_F)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slicing:
    """The slices of a group, in order."""

    slices: tuple[Slice, ...]
    capacity: int
    """Tokens that are kept at once, at most."""


def slice_group(
    group: ScoreGroup,
    costs: ContextCosts,
    *,
    max_cost: float,
    keeps_last_tokens: bool = False,
    num_positions: int | None = None,
) -> Slicing:
    """In slices that cost at most `max_cost`, or hold one token. `num_positions`: every slice computes one more token,
    which stands alone at the last of that many positions and whose row nobody reads. For ropes that look at the longest
    sequence of a forward."""
    slicer = _Slicer(costs, max_cost=max_cost, num_positions=num_positions)
    slicer.add_prompt(group.prompt_ids_P)
    for response in group.responses:
        slicer.add_response(response, response.ids_T if keeps_last_tokens else response.ids_T[:-1])
    return slicer.finish()


class _Draft:
    """The slice that is being filled."""

    def __init__(self, costs: ContextCosts, *, room: float, needs: Sequence[int]) -> None:
        self._costs = costs
        self._room = room
        self._cost = 0.0
        self.needs = tuple(needs)
        self.prompt_end: int | None = None
        self.has_piece = False
        """Of a response that is cut into chunks."""
        self._token_ids: list[TokenArray] = []
        self._positions: list[npt.NDArray[np.int64]] = []
        self._segments: list[Segment] = []
        self._rows: list[npt.NDArray[np.int64]] = []
        self._num_tokens = 0

    @property
    def is_empty(self) -> bool:
        return not self._num_tokens

    def fits(self, num_tokens: int, *, num_kept: int) -> bool:
        """So many tokens behind so many that are kept."""
        return not num_tokens or self._cost + self._costs.of_span(num_kept, num_kept + num_tokens) <= self._room

    def num_fitting(self, *, num_kept: int) -> int:
        """How many tokens fit behind so many that are kept; an empty slice has room for one, whatever it costs."""
        return max(int(self.is_empty), self._costs.num_tokens(num_kept, max(0.0, self._room - self._cost)))

    def add(self, token_ids: TokenArray, *, num_kept: int, is_kept: bool = False, position: int | None = None) -> Span:
        span = Span(self._num_tokens, self._num_tokens + len(token_ids))
        first = num_kept if position is None else position
        self._token_ids.append(token_ids)
        self._positions.append(np.arange(first, first + len(token_ids)))
        self._segments.append(Segment(span, (), num_kept, is_kept))
        self._num_tokens = span.stop
        self._cost += self._costs.of_span(num_kept, num_kept + len(token_ids))
        return span

    def add_rows(self, rows: npt.NDArray[np.int64]) -> None:
        self._rows.append(rows)

    def finish(self) -> Slice:
        return Slice(
            token_ids_F=np.concatenate(self._token_ids),
            positions_F=np.concatenate(self._positions),
            segments=tuple(self._segments),
            rows_N=np.concatenate(self._rows) if self._rows else np.zeros(0, np.int64),
            prompt_end=self.prompt_end,
            cost=self._cost,
            needs=self.needs,
        )


class _Slicer:
    """Fills slices."""

    def __init__(self, costs: ContextCosts, *, max_cost: float, num_positions: int | None) -> None:
        self._costs = costs
        self._num_positions = num_positions
        self._room = max_cost - (num_positions is not None)  # and a slice holds one token, whatever it costs
        self._done: list[Slice] = []
        self._prompt_slices: list[int] = []
        self._num_prompt = self._capacity = 0
        self._draft = _Draft(costs, room=self._room, needs=())

    def add_prompt(self, ids_P: TokenArray) -> None:
        self._num_prompt = self._capacity = len(ids_P)
        first = 0
        while first < len(ids_P):
            if first:
                self._close(needs=self._prompt_slices)
            stop = min(len(ids_P), first + self._draft.num_fitting(num_kept=first))
            span = self._draft.add(ids_P[first:stop], num_kept=first, is_kept=True)
            self._prompt_slices.append(len(self._done))
            first = stop
        self._draft.prompt_end = span.stop - 1

    def add_response(self, response: ResponseToScore, inputs: TokenArray) -> None:
        """Whose tokens are predicted after `inputs`: all of them, or all but the last."""
        is_long = self._costs.of_span(self._num_prompt, self._num_prompt + len(inputs)) > self._room
        if is_long and not self._draft.has_piece and self._draft.num_fitting(num_kept=self._num_prompt):
            pass  # its first chunk fills what is left
        elif not self._draft.fits(len(inputs), num_kept=self._num_prompt):
            self._close(needs=self._prompt_slices)
        mask_T = response.score_mask_T
        if mask_T[0]:
            self._draft.add_rows(np.array([PROMPT_END]))
        if is_long:
            self._add_in_chunks(inputs, mask_T)
        elif len(inputs):
            span = self._draft.add(inputs, num_kept=self._num_prompt)
            self._draft.add_rows(span.start + np.flatnonzero(mask_T[1:]))

    def _add_in_chunks(self, inputs: TokenArray, mask_T: npt.NDArray[np.bool_]) -> None:
        needs, first = list(self._prompt_slices), 0
        while first < len(inputs):
            if first:
                self._close(needs=needs)
            num_kept = self._num_prompt + first
            stop = min(len(inputs), first + self._draft.num_fitting(num_kept=num_kept))
            is_last = stop == len(inputs)
            self._draft.has_piece = True
            span = self._draft.add(inputs[first:stop], num_kept=num_kept, is_kept=not is_last)
            self._draft.add_rows(span.start + np.flatnonzero(mask_T[1 + first : 1 + stop]))
            needs.append(len(self._done))
            self._capacity = max(self._capacity, self._num_prompt + (first if is_last else stop))
            first = stop

    def _close(self, *, needs: Sequence[int]) -> None:
        if self._num_positions is not None:
            self._draft.add(np.zeros(1, np.int64), num_kept=0, position=self._num_positions - 1)
        self._done.append(self._draft.finish())
        self._draft = _Draft(self._costs, room=self._room, needs=needs)

    def finish(self) -> Slicing:
        self._close(needs=())
        return Slicing(slices=tuple(self._done), capacity=self._capacity)
