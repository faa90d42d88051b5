from __future__ import annotations

import numpy as np
import pytest
from preceptor_server.engines.candidates import join_candidates
from preceptor_server.engines.hf.scored_rows import scored_rows

from tests.unit.server.candidate_groups import with_candidates
from tests.unit.server.groups import group_of, random_batch, response_of


def test_every_row_of_a_chunk_has_the_ids_that_its_response_named() -> None:
    blocks = [np.array([[7, 8], [9, 9]]), None, np.array([[4]]), None]
    candidates = join_candidates(blocks, nums_rows=[2, 3, 1, 1])
    assert candidates is not None
    rows_E, ids_E = candidates.of_chunk(0, 7)
    assert list(zip(rows_E.tolist(), ids_E.tolist(), strict=True)) == [(0, 7), (0, 8), (1, 9), (1, 9), (5, 4)]
    rows_E, ids_E = candidates.of_chunk(1, 6)
    assert list(zip(rows_E.tolist(), ids_E.tolist(), strict=True)) == [(0, 9), (0, 9), (4, 4)]
    rows_E, ids_E = candidates.of_chunk(2, 5)
    assert (rows_E.tolist(), ids_E.tolist()) == ([], [])


def test_batch_in_which_nobody_names_an_id_has_no_candidates() -> None:
    assert scored_rows([group_of([1], [2, 3]), group_of([4], [5])]).candidates is None


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("rows_per_chunk", [1, 5, 1000])
def test_rows_ask_for_what_their_positions_name(seed: int, rows_per_chunk: int) -> None:
    rng = np.random.default_rng(seed)
    batch = with_candidates(random_batch(rng, vocabulary_size=1000), rng, vocabulary_size=1000)
    expected = [
        [] if response.candidate_ids_TC is None else response.candidate_ids_TC[position].tolist()
        for group in batch
        for response in group.responses
        for position in np.flatnonzero(response.score_mask_T)
    ]
    rows = scored_rows(batch)
    assert rows.candidates is not None
    asked: list[list[int]] = [[] for _ in expected]
    for start in range(0, len(rows.sampled_ids_N), rows_per_chunk):
        chunk = rows.candidates.of_chunk(start, min(start + rows_per_chunk, len(rows.sampled_ids_N)))
        for row, token in zip(*chunk, strict=True):
            asked[start + int(row)].append(int(token))
    assert asked == expected


def test_positions_that_are_not_scored_name_nothing() -> None:
    response = response_of([5, 6, 7], [0, 1, 0], candidates=[[1], [2], [3]])
    candidates = scored_rows([group_of([1], response)]).candidates
    assert candidates is not None
    rows_E, ids_E = candidates.of_chunk(0, 1)
    assert (rows_E.tolist(), ids_E.tolist()) == ([0], [2])
