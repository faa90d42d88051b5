"""Cuts a group into slices of at most so many computed tokens, each a forward of its own. Numpy only: no model.

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
    group: ScoreGroup, *, max_tokens: int, keeps_last_tokens: bool = False, num_positions: int | None = None
) -> Slicing:
    """`num_positions`: every slice computes one more token, which stands alone at the last of that many positions and
    whose row nobody reads. For ropes that look at the longest sequence of a forward."""
    slicer = _Slicer(max_tokens=max_tokens, num_positions=num_positions)
    slicer.add_prompt(group.prompt_ids_P)
    for response in group.responses:
        slicer.add_response(response, response.ids_T if keeps_last_tokens else response.ids_T[:-1])
    return slicer.finish()


class _Draft:
    """The slice that is being filled."""

    def __init__(self, *, room: int, needs: Sequence[int]) -> None:
        self.room = room
        self.needs = tuple(needs)
        self.prompt_end: int | None = None
        self.has_piece = False
        """Of a response that is cut into chunks."""
        self._token_ids: list[TokenArray] = []
        self._positions: list[npt.NDArray[np.int64]] = []
        self._segments: list[Segment] = []
        self._rows: list[npt.NDArray[np.int64]] = []
        self._num_tokens = 0

    def add(self, token_ids: TokenArray, *, num_kept: int, is_kept: bool = False, position: int | None = None) -> Span:
        span = Span(self._num_tokens, self._num_tokens + len(token_ids))
        first = num_kept if position is None else position
        self._token_ids.append(token_ids)
        self._positions.append(np.arange(first, first + len(token_ids)))
        self._segments.append(Segment(span, (), num_kept, is_kept))
        self._num_tokens = span.stop
        self.room -= len(token_ids)
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
            needs=self.needs,
        )


class _Slicer:
    """Fills slices."""

    def __init__(self, *, max_tokens: int, num_positions: int | None) -> None:
        self._num_positions = num_positions
        self._room = max(1, max_tokens - (num_positions is not None))
        self._done: list[Slice] = []
        self._prompt_slices: list[int] = []
        self._num_prompt = self._capacity = 0
        self._draft = _Draft(room=self._room, needs=())

    def add_prompt(self, ids_P: TokenArray) -> None:
        self._num_prompt = self._capacity = len(ids_P)
        for first in range(0, len(ids_P), self._room):
            if first:
                self._close(needs=self._prompt_slices)
            span = self._draft.add(ids_P[first : first + self._room], num_kept=first, is_kept=True)
            self._prompt_slices.append(len(self._done))
        self._draft.prompt_end = span.stop - 1

    def add_response(self, response: ResponseToScore, inputs: TokenArray) -> None:
        """Whose tokens are predicted after `inputs`: all of them, or all but the last."""
        is_long = len(inputs) > self._room
        if is_long and not self._draft.has_piece and self._draft.room > 0:
            pass  # its first chunk fills what is left
        elif len(inputs) > self._draft.room:
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
            stop = min(len(inputs), first + self._draft.room)
            is_last = stop == len(inputs)
            self._draft.has_piece = True
            span = self._draft.add(inputs[first:stop], num_kept=self._num_prompt + first, is_kept=not is_last)
            self._draft.add_rows(span.start + np.flatnonzero(mask_T[1 + first : 1 + stop]))
            needs.append(len(self._done))
            self._capacity = max(self._capacity, self._num_prompt + (first if is_last else stop))
            first = stop

    def _close(self, *, needs: Sequence[int]) -> None:
        if self._num_positions is not None:
            self._draft.add(np.zeros(1, np.int64), num_kept=0, position=self._num_positions - 1)
        self._done.append(self._draft.finish())
        self._draft = _Draft(room=self._room, needs=needs)

    def finish(self) -> Slicing:
        self._close(needs=())
        return Slicing(slices=tuple(self._done), capacity=self._capacity)
