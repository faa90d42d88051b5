from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from preceptor_server.context_costs import FLAT, ContextCosts
from preceptor_server.engines.hf.slicing import PROMPT_END, Slice, Slicing, slice_group
from preceptor_server.types import ScoreGroup

from tests.unit.server.groups import group_of, random_batch, response_of

Row = tuple[list[int], int]
"""The ids that a row sees, and the token that it predicts."""


@dataclass(slots=True)
class Memory:
    """What a model would keep: the ids of the kept tokens, and what the last token of the prompt sees."""

    capacity: int
    kept: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)

    def seen(self, slicing: Slicing, index: int) -> list[list[int]]:
        """The ids that each flat token of a slice sees, itself last."""
        chosen = slicing.slices[index]
        seen: list[list[int]] = []
        for segment in chosen.segments:
            own = chosen.token_ids_F[segment.span.start : segment.span.stop].tolist()
            assert segment.num_kept <= len(self.kept), "it attends to what nobody kept"
            before = self.kept[: segment.num_kept]
            seen += [before + own[: count + 1] for count in range(len(own))]
            if segment.is_kept:
                self.kept = before + own
                assert len(self.kept) <= self.capacity
        if chosen.prompt_end is not None:
            self.prompt = seen[chosen.prompt_end]
        return seen


def rows_of(slicing: Slicing, group: ScoreGroup) -> list[list[int]]:
    """The ids that stand before each scored position, in the order of the slices."""
    memory = Memory(slicing.capacity)
    rows: list[list[int]] = []
    for index, chosen in enumerate(slicing.slices):
        seen = memory.seen(slicing, index)
        rows += [memory.prompt if row == PROMPT_END else seen[row] for row in chosen.rows_N]
    return rows


def expected_rows(group: ScoreGroup) -> list[list[int]]:
    return [
        [*group.prompt_ids_P.tolist(), *response.ids_T[:t].tolist()]
        for response in group.responses
        for t in np.flatnonzero(response.score_mask_T)
    ]


@pytest.mark.parametrize("keeps_last_tokens", [False, True])
@pytest.mark.parametrize("max_cost", [1, 2, 3, 7, 16, 40, 1000])
@pytest.mark.parametrize("seed", range(10))
def test_every_scored_position_sees_its_own_prefix_and_no_slice_is_too_large(
    seed: int, max_cost: int, keeps_last_tokens: bool
) -> None:
    for group in random_batch(np.random.default_rng(seed), vocabulary_size=1000):
        slicing = slice_group(group, FLAT, max_cost=max_cost, keeps_last_tokens=keeps_last_tokens)
        assert rows_of(slicing, group) == expected_rows(group)
        assert all(1 <= one.num_tokens <= max_cost for one in slicing.slices)
        num_last = 0 if keeps_last_tokens else len(group.responses)
        num_tokens = len(group.prompt_ids_P) + sum(len(one.ids_T) for one in group.responses) - num_last
        assert sum(one.num_tokens for one in slicing.slices) == num_tokens, "every token is computed once"


@pytest.mark.parametrize("horizon", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("max_cost", [1.0, 8.0, 40.0, 300.0])
@pytest.mark.parametrize("num_positions", [None, 1000])
def test_slices_grow_shorter_as_their_context_grows_and_cost_no_more_than_they_may(
    horizon: float, max_cost: float, num_positions: int | None
) -> None:
    def cost_by_definition(one: Slice) -> float:
        lengths = [(segment.num_kept, len(segment.span)) for segment in one.segments]
        if num_positions is not None:
            assert lengths.pop() == (0, 1), "the token that stands alone"
        return sum(1 + (kept + i) / horizon for kept, length in lengths for i in range(length))

    costs, alone = ContextCosts(horizon=horizon), num_positions is not None
    for group in [
        *random_batch(np.random.default_rng(3), vocabulary_size=9),
        group_of([1] * 200, [2] * 90, [3], [4, 5], [6] * 30),
    ]:
        slicing = slice_group(group, costs, max_cost=max_cost, num_positions=num_positions)
        for one in slicing.slices:
            expected = cost_by_definition(one)
            assert one.cost == pytest.approx(expected + alone)
            assert expected + alone <= max_cost * (1 + 1e-9) or one.num_tokens == 1 + alone
        num_inputs = len(group.prompt_ids_P) + sum(len(response.ids_T) - 1 for response in group.responses)
        assert sum(one.num_tokens - alone for one in slicing.slices) == num_inputs, "each token once"
    prompt = slice_group(group_of([1] * 200, [2]), costs, max_cost=40.0).slices
    lengths = [one.num_tokens for one in prompt]
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
    assert lengths[0] > lengths[-2] or len(lengths) <= 2


@pytest.mark.parametrize("max_cost", [2, 5, 16])
@pytest.mark.parametrize("seed", range(20))
def test_what_a_slice_needs_is_enough_to_compute_it_when_all_else_is_forgotten(seed: int, max_cost: int) -> None:
    for group in random_batch(np.random.default_rng(seed), vocabulary_size=1000):
        slicing = slice_group(group, FLAT, max_cost=max_cost)
        whole = Memory(slicing.capacity)
        for index, chosen in enumerate(slicing.slices):
            bare = Memory(slicing.capacity)
            for other in chosen.needs:
                assert other < index
                bare.seen(slicing, other)
            assert bare.seen(slicing, index) == whole.seen(slicing, index)


def test_responses_share_slices_and_a_long_one_is_cut() -> None:
    group = group_of([1, 2, 3], [4, 5], [6, 7, 8], list(range(20, 30)), [9, 9])
    slicing = slice_group(group, FLAT, max_cost=4)
    # The last token of a response is not computed: nothing is predicted from it.
    assert [one.token_ids_F.tolist() for one in slicing.slices] == [
        [1, 2, 3, 4],
        [6, 7, 20, 21],
        [22, 23, 24, 25],
        [26, 27, 28, 9],
    ]
    assert [one.positions_F.tolist() for one in slicing.slices] == [
        [0, 1, 2, 3],
        [3, 4, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 3],
    ]
    assert [one.needs for one in slicing.slices] == [(), (0,), (0, 1), (0, 1, 2)]
    assert slicing.capacity == 3 + 6, "the last piece of the long response is kept for nobody"


def test_two_long_responses_never_share_a_slice() -> None:
    group = group_of([1], list(range(10, 17)), list(range(20, 27)))
    slicing = slice_group(group, FLAT, max_cost=4)
    assert [one.token_ids_F.tolist() for one in slicing.slices] == [
        [1, 10, 11, 12],
        [13, 14, 15],
        [20, 21, 22, 23],
        [24, 25],
    ]
    assert slicing.slices[3].needs == (0, 2)


def test_responses_of_one_token_cost_nothing_even_where_the_prompt_fills_its_slice() -> None:
    slicing = slice_group(group_of([1, 2, 3], [4], response_of([5, 6], [0, 1]), [7]), FLAT, max_cost=3)
    assert [one.token_ids_F.tolist() for one in slicing.slices] == [[1, 2, 3], [5]]
    assert [one.rows_N.tolist() for one in slicing.slices] == [[PROMPT_END], [0, PROMPT_END]]


def test_a_rope_that_looks_at_the_longest_sequence_finds_it_in_every_slice() -> None:
    slicing = slice_group(
        group_of([1, 2, 3], [4, 5, 6, 7], [8, 9]), FLAT, max_cost=3, keeps_last_tokens=True, num_positions=7
    )
    assert all(int(one.positions_F.max()) == 6 for one in slicing.slices)
    assert all(one.num_tokens <= 3 for one in slicing.slices)
    for one in slicing.slices:
        last = one.segments[-1]
        assert (len(last.span), last.num_kept, last.is_kept, last.span.stop) == (1, 0, False, one.num_tokens)
        assert one.num_tokens - 1 not in one.rows_N.tolist()
