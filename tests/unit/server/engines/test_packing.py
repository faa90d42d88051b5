from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from preceptor_server.engines.hf.packing import MIN_SHARED_TOKENS, PackedBatch, Segment, Span, pack
from preceptor_server.engines.hf.scored_rows import scored_rows
from preceptor_server.types import ScoreGroup

from tests.unit.server.groups import group_of, random_batch, response_of

LONG = list(range(100, 100 + 2 * MIN_SHARED_TOKENS))
"""A prefix long enough to be shared."""
SHORT = LONG[: MIN_SHARED_TOKENS - 1]
"""One token too short to be shared."""


def segment_of(packed: PackedBatch, row: int) -> Segment:
    holders = [s for s in packed.segments if s.span.start <= row < s.span.stop]
    assert len(holders) == 1, "every flat token belongs to one segment"
    return holders[0]


def tokens_before(packed: PackedBatch, row: int) -> tuple[list[int], list[int]]:
    """The ids that a row sees, itself last, and their positions: its ancestors, then its own segment up to it."""
    segment = segment_of(packed, row)
    seen = [*segment.ancestors, Span(segment.span.start, row + 1)]
    ids = np.concatenate([packed.token_ids_F[span.start : span.stop] for span in seen])
    positions = np.concatenate([packed.positions_F[span.start : span.stop] for span in seen])
    return ids.tolist(), positions.tolist()


def expected_rows(batch: Sequence[ScoreGroup]) -> list[tuple[int, list[int], int]]:
    """Group, prefix and next token of every scored position, in the order of the answer."""
    rows: list[tuple[int, list[int], int]] = []
    for index, group in enumerate(batch):
        for response in group.responses:
            ids = [*group.prompt_ids_P.tolist(), *response.ids_T.tolist()]
            for t in np.flatnonzero(response.score_mask_T):
                stop = len(group.prompt_ids_P) + int(t)
                rows.append((index, ids[:stop], ids[stop]))
    return rows


@pytest.mark.parametrize("keeps_last_tokens", [False, True])
@pytest.mark.parametrize("seed", range(100))
def test_every_row_sees_its_own_prefix_and_predicts_its_own_token(seed: int, keeps_last_tokens: bool) -> None:
    batch = random_batch(np.random.default_rng(seed), vocabulary_size=1000)
    packed, asked = pack(batch, keeps_last_tokens=keeps_last_tokens), scored_rows(batch)
    rows = []
    for row, sampled, group in zip(packed.rows_N, asked.sampled_ids_N, asked.group_of_row_N, strict=True):
        ids, positions = tokens_before(packed, int(row))
        assert positions == list(range(len(ids)))
        rows.append((int(group), ids, int(sampled)))
    assert rows == expected_rows(batch)


@pytest.mark.parametrize("seed", range(30))
def test_segments_tile_the_batch_and_follow_their_ancestors(seed: int) -> None:
    batch = random_batch(np.random.default_rng(1000 + seed), vocabulary_size=3)
    packed = pack(batch)
    bounds = [0, *(segment.span.stop for segment in packed.segments)]
    assert [segment.span.start for segment in packed.segments] == bounds[:-1]
    assert bounds[-1] == len(packed.token_ids_F) == len(packed.positions_F)
    for segment in packed.segments:
        assert all(ancestor.stop <= segment.span.start for ancestor in segment.ancestors)
        assert len(segment.span) > 0


@pytest.mark.parametrize(
    ("batch", "num_flat_tokens"),
    [
        # prompt + (response - 1): the last token needs no forward
        ([group_of([1, 2, 3], [4, 5])], 3 + 1),
        ([group_of([1, 2, 3], [4, 5], [6, 7, 8])], 3 + 1 + 2),
        # a one-token response is predicted from the prompt alone
        ([group_of([1, 2, 3], [4])], 3),
        ([group_of([1, 2, 3], [4], [5], [6])], 3),
        # a one-token prompt
        ([group_of([1], [4])], 1),
        ([group_of([1], [4, 5, 6])], 1 + 2),
        # equal prompts, however short, are stored once
        ([group_of([1], [4, 5]), group_of([1], [6, 7])], 1 + 1 + 1),
        ([group_of(LONG, [4, 5]), group_of(LONG, [6, 7])], 32 + 1 + 1),
        # one prompt continues the other: what is whole is shared, however short
        ([group_of([1, 2], [4]), group_of([1, 2, 3], [4])], 3),
        ([group_of(LONG, [4]), group_of([*LONG, 7, 8, 9], [4])], 32 + 3),
        # the longer one comes first: its node is split where the other ends
        ([group_of([*LONG, 7, 8, 9], [4]), group_of(LONG, [4])], 32 + 3),
        # ... unless that is before MIN_SHARED_TOKENS
        ([group_of([*SHORT, 7, 8, 9], [4]), group_of(SHORT, [4])], 15 + 3 + 15),
        # prompts that part before, and at, MIN_SHARED_TOKENS
        ([group_of([*SHORT, 1], [4]), group_of([*SHORT, 2], [4])], 2 * 16),
        ([group_of([*LONG[:16], 1], [4]), group_of([*LONG[:16], 2], [4])], 16 + 1 + 1),
        # three ways out of one prefix
        ([group_of([*LONG, 1], [4]), group_of([*LONG, 2], [4]), group_of([*LONG, 3], [4])], 32 + 3),
        # a split within a split: 32 shared by three, 16 more by two of them
        (
            [
                group_of([*LONG, *LONG[:16], 1], [4, 4]),
                group_of([*LONG, 9, 9], [4, 4]),
                group_of([*LONG, *LONG[:16], 2], [4, 4]),
            ],
            32 + 16 + 1 + 2 + 1 + 3 * 1,
        ),
        # a split above a split: first 32 shared, then a third prompt parts after 16
        ([group_of([*LONG, 1], [4]), group_of([*LONG, 2], [4]), group_of([*LONG[:16], 3], [4])], 32 + 3),
        # nothing in common
        ([group_of([1, 2], [3]), group_of([2, 1], [3])], 4),
    ],
)
def test_shared_prefixes_are_stored_once(batch: list[ScoreGroup], num_flat_tokens: int) -> None:
    packed = pack(batch)
    assert len(packed.token_ids_F) == num_flat_tokens
    assert len(packed.rows_N) == sum(len(response.ids_T) for group in batch for response in group.responses)


def test_prefix_of_a_whole_prompt_is_an_ancestor_of_the_one_that_continues_it() -> None:
    packed = pack([group_of([*LONG, 7, 8], [4, 5]), group_of(LONG, [6, 6])])
    shared, rest = Span(0, 32), Span(32, 34)
    assert packed.segments == (
        Segment(shared, ()),
        Segment(rest, (shared,)),
        Segment(Span(34, 35), (shared, rest)),
        Segment(Span(35, 36), (shared,)),
    )
    assert packed.token_ids_F[32:].tolist() == [7, 8, 4, 6]
    assert packed.positions_F[32:].tolist() == [32, 33, 34, 32]
    assert packed.rows_N.tolist() == [33, 34, 31, 35]


def test_last_tokens_are_laid_out_where_they_are_asked_for() -> None:
    packed = pack([group_of([1, 2], [3, 4], [5])], keeps_last_tokens=True)
    assert packed.token_ids_F.tolist() == [1, 2, 3, 4, 5]
    assert packed.positions_F.tolist() == [0, 1, 2, 3, 2]
    assert packed.rows_N.tolist() == [1, 2, 1]


def test_masked_positions_have_no_rows_but_stay_in_the_prefix() -> None:
    batch = [group_of([1, 2], response_of([3, 4, 5, 6], [1, 0, 0, 1]), response_of([7, 8], [0, 1]))]
    packed = pack(batch)
    assert packed.token_ids_F.tolist() == [1, 2, 3, 4, 5, 7]
    assert packed.rows_N.tolist() == [1, 4, 5]
    assert scored_rows(batch).sampled_ids_N.tolist() == [3, 6, 8]
    assert tokens_before(packed, 4) == ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4])


def test_rows_know_the_group_that_they_belong_to() -> None:
    rows = scored_rows([group_of([1], [2, 3], [4]), group_of([1], [5]), group_of([9], [6, 7])])
    assert rows.group_of_row_N.tolist() == [0, 0, 0, 1, 2, 2]


def test_responses_that_begin_alike_are_not_shared() -> None:
    packed = pack([group_of([1], [*LONG, 2], [*LONG, 3])])
    assert len(packed.token_ids_F) == 1 + 32 + 32


def test_packing_leaves_the_callers_arrays_alone() -> None:
    batch = random_batch(np.random.default_rng(7), vocabulary_size=5)
    before = [group.prompt_ids_P.copy() for group in batch]
    pack(batch)
    assert all(np.array_equal(a, group.prompt_ids_P) for a, group in zip(before, batch, strict=True))
