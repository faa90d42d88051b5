"""Lays groups out as one flat row of tokens, without padding, every shared prefix once. Numpy only: no model, no torch.

A batch becomes a forest. A *segment* is a run of tokens that attends to itself, causally, and to the whole of its
ancestors: a response's segment has its prompt as ancestor, and prompts that begin alike share the segment of what they
have in common. The last token of a response needs no forward, since nothing is predicted from it; it is laid out only
where a model's numbers depend on how long a sequence is.
"""

# P = prompt tokens, T = tokens of a response, F = flat tokens of the batch, N = scored positions of the batch

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_server.types import ScoreGroup, num_shared_tokens

MIN_SHARED_TOKENS = 16
"""Prompts share a segment only from this length on: below it, the extra attention call costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of flat tokens, [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of flat tokens and the spans, in order, that stand before it."""

    span: Span
    ancestors: tuple[Span, ...]
    num_kept: int = 0
    """Tokens of earlier forwards that stand before all ancestors, whose keys and values were kept."""
    is_kept: bool = False
    """Whether its own keys and values are kept, after these, for later forwards. It has no ancestors then."""

    @property
    def num_ancestor_tokens(self) -> int:
        """All that stand before it, in this forward or in earlier ones."""
        return self.num_kept + sum(len(span) for span in self.ancestors)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """A batch, laid out. Row `rows_N[i]` of the flat hidden states predicts its i-th scored token."""

    token_ids_F: TokenArray
    positions_F: npt.NDArray[np.int64]
    segments: tuple[Segment, ...]
    rows_N: npt.NDArray[np.int64]


def pack(batch: Sequence[ScoreGroup], *, keeps_last_tokens: bool = False) -> PackedBatch:
    """Lays out `batch`: first the prompts, their shared prefixes once, then the responses, in the batch's order."""
    layout = _Layout(keeps_last_tokens=keeps_last_tokens)
    roots = _insert_prompts(batch)
    prompt_ends: dict[int, tuple[Span, ...]] = {}
    for root in roots:
        _lay_out_prompts(root, (), layout, prompt_ends)
    for index, group in enumerate(batch):
        ancestors = prompt_ends[index]
        for response in group.responses:
            rows_T = layout.add_response(response.ids_T, ancestors)
            layout.add_rows(rows_T[response.score_mask_T])
    return layout.finish()


@dataclass(slots=True, eq=False)
class _Node:
    """A stretch of prompt tokens; `groups` end with it, `children` go on from it."""

    token_ids: TokenArray
    groups: list[int] = field(default_factory=list)
    children: list[_Node] = field(default_factory=list)


def _insert_prompts(batch: Sequence[ScoreGroup]) -> list[_Node]:
    roots: list[_Node] = []
    for index, group in enumerate(batch):
        _insert(roots, group.prompt_ids_P, index)
    return roots


def _insert(siblings: list[_Node], token_ids: TokenArray, group: int) -> None:
    """Walks down while at least MIN_SHARED_TOKENS, or a whole node, are shared; splits the node where it parts."""
    for node in siblings:
        shared = num_shared_tokens(node.token_ids, token_ids)
        is_whole_node = shared == len(node.token_ids)
        if not is_whole_node and shared < MIN_SHARED_TOKENS:
            continue
        if not is_whole_node:
            rest = _Node(node.token_ids[shared:], node.groups, node.children)
            node.token_ids, node.groups, node.children = node.token_ids[:shared], [], [rest]
        if shared == len(token_ids):
            node.groups.append(group)
        else:
            _insert(node.children, token_ids[shared:], group)
        return
    siblings.append(_Node(token_ids, [group]))


def _lay_out_prompts(
    node: _Node, ancestors: tuple[Span, ...], layout: _Layout, prompt_ends: dict[int, tuple[Span, ...]]
) -> None:
    span = layout.add_segment(node.token_ids, ancestors)
    path = (*ancestors, span)
    for group in node.groups:
        prompt_ends[group] = path
    for child in node.children:
        _lay_out_prompts(child, path, layout, prompt_ends)


class _Layout:
    """Collects segments and rows."""

    def __init__(self, *, keeps_last_tokens: bool) -> None:
        self._keeps_last_tokens = keeps_last_tokens
        self._token_ids: list[TokenArray] = []
        self._positions: list[npt.NDArray[np.int64]] = []
        self._segments: list[Segment] = []
        self._rows: list[npt.NDArray[np.int64]] = []
        self._num_tokens = 0

    def add_segment(self, token_ids: TokenArray, ancestors: tuple[Span, ...]) -> Span:
        span = Span(self._num_tokens, self._num_tokens + len(token_ids))
        segment = Segment(span, ancestors)
        first = segment.num_ancestor_tokens
        self._token_ids.append(token_ids)
        self._positions.append(np.arange(first, first + len(token_ids)))
        self._segments.append(segment)
        self._num_tokens = span.stop
        return span

    def add_response(self, ids_T: TokenArray, ancestors: tuple[Span, ...]) -> npt.NDArray[np.int64]:
        """Lays out all tokens, or all but the last; returns, for each of the T, the flat row that predicts it."""
        rows_T = np.empty(len(ids_T), np.int64)
        rows_T[0] = ancestors[-1].stop - 1
        inputs = ids_T if self._keeps_last_tokens else ids_T[:-1]
        if len(inputs):
            span = self.add_segment(inputs, ancestors)
            rows_T[1:] = span.start + np.arange(len(ids_T) - 1)
        return rows_T

    def add_rows(self, rows: npt.NDArray[np.int64]) -> None:
        self._rows.append(rows)

    def finish(self) -> PackedBatch:
        return PackedBatch(
            token_ids_F=np.concatenate(self._token_ids),
            positions_F=np.concatenate(self._positions),
            segments=tuple(self._segments),
            rows_N=np.concatenate(self._rows),
        )
