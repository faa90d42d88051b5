"""The fast way to ask vLLM: a group becomes requests whose rows the worker itself turns into columns.

A prompt's last token predicts the first token of every response, so the first response's request asks for that row on
behalf of its siblings too; theirs may take the whole prompt from the prefix cache. Knows nothing of vLLM's API.
"""

# P = prompt tokens, T = tokens of a response, R = wanted rows of a request, N = scored positions of a response,
# C = candidates per position, K = support size, E = candidates of all rows

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.wire import LogprobArray, PackedTokenArray, TokenArray

from preceptor_server.engines.assembly import RowColumns, response_columns
from preceptor_server.engines.candidates import join_candidates
from preceptor_server.engines.vllm.rows import FINITE, RowAnswer, RowQuestion
from preceptor_server.types import GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FastRequest:
    """One request to vLLM: its tokens, and the rows that are wanted of them."""

    token_ids: TokenArray
    question: RowQuestion


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FastPlan:
    """The requests of a group, in the order in which to submit them. `bodies[i]` is the index of the request that holds
    the rows of response i after its first token; None where it has none."""

    requests: tuple[FastRequest, ...]
    bodies: tuple[int | None, ...]


def plan(group: ScoreGroup) -> FastPlan:
    """The first request ends the prompt, so that what follows finds it in the cache."""
    opens = [bool(response.score_mask_T[0]) for response in group.responses]
    requests: list[FastRequest] = []
    bodies: list[int | None] = []
    for index, response in enumerate(group.responses):
        is_first = index == 0
        if not is_first and not response.score_mask_T[1:].any():
            bodies.append(None)
            continue
        bodies.append(len(requests))
        opening = [one for one, is_wanted in zip(group.responses, opens, strict=True) if is_wanted] if is_first else []
        requests.append(_request(group, response, opening))
    return FastPlan(requests=tuple(requests), bodies=tuple(bodies))


def _request(group: ScoreGroup, response: ResponseToScore, opening: Sequence[ResponseToScore]) -> FastRequest:
    """`opening`: the responses whose first token the row of the prompt's last token is wanted for."""
    num_prompt = len(group.prompt_ids_P)
    rows_T = np.flatnonzero(response.score_mask_T[1:]) + 1
    positions = rows_T + num_prompt - 1
    sampled = response.ids_T[rows_T]
    blocks = [None if response.candidate_ids_TC is None else response.candidate_ids_TC[rows_T]]
    nums_rows = [len(rows_T)]
    if opening:
        positions = np.concatenate([[num_prompt - 1], positions])
        sampled = np.concatenate([opening[0].ids_T[:1], sampled])
        blocks.insert(0, _opening_candidates(opening)[None])
        nums_rows.insert(0, 1)
    # Nothing is predicted from tokens after the last wanted row.
    last = int(positions[-1]) if len(positions) else num_prompt - 1
    return FastRequest(
        token_ids=np.concatenate([group.prompt_ids_P, response.ids_T])[: last + 1],
        question=RowQuestion(
            positions_R=positions,
            sampled_ids_R=sampled,
            candidates=join_candidates(blocks, nums_rows=nums_rows),
            top_k=group.top_k,
            temperature=group.temperature,
            cache_limit=min(int(positions[0]), num_prompt) if len(positions) else num_prompt - 1,
        ),
    )


def _opening_candidates(opening: Sequence[ResponseToScore]) -> PackedTokenArray:
    """Of each response in turn: its first token, then its candidates there."""
    parts: list[PackedTokenArray] = []
    for response in opening:
        parts.append(response.ids_T[:1])
        if response.candidate_ids_TC is not None:
            parts.append(response.candidate_ids_TC[0])
    return np.concatenate(parts)


def columns_of_group(group: ScoreGroup, planned: FastPlan, answers: Sequence[RowAnswer]) -> GroupColumns:
    """The columns of each response: its first row out of the first request, the others out of its own."""
    openings_E = answers[0].candidate_logprobs_E
    has_opening = any(response.score_mask_T[0] for response in group.responses)
    columns: list[ResponseColumns] = []
    for index, (response, body) in enumerate(zip(group.responses, planned.bodies, strict=True)):
        width = 0 if response.candidate_ids_TC is None else response.candidate_ids_TC.shape[1]
        blocks: list[_Block] = []
        if response.score_mask_T[0]:
            blocks.append(_opening(answers[0], sampled_logprob=openings_E[:1], candidates_C=openings_E[1 : 1 + width]))
            openings_E = openings_E[1 + width :]
        if body is not None:
            skips_opening = index == 0 and has_opening
            blocks.append(_body(answers[body], num_skipped=int(skips_opening), width=width))
        rows = {name: np.concatenate([block.rows[name] for block in blocks]) for name in blocks[0].rows}
        candidates_NC = np.concatenate([block.candidates_NC for block in blocks]) if width else None
        columns.append(response_columns(response, rows, candidates_NC, group.top_k))
    return tuple(columns)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Rows of one response, by the names that ColumnCollector gives them."""

    rows: RowColumns
    candidates_NC: LogprobArray


def _opening(answer: RowAnswer, *, sampled_logprob: LogprobArray, candidates_C: LogprobArray) -> _Block:
    """The first request's first row, with the logprob of the response's own first token."""
    return _Block(
        rows=_rows(answer, slice(0, 1)) | {"sampled_logprobs_R": sampled_logprob}, candidates_NC=candidates_C[None]
    )


def _body(answer: RowAnswer, *, num_skipped: int, width: int) -> _Block:
    """A request's own rows. Their candidates are the last of its answer."""
    num_rows = len(answer.states_R) - num_skipped
    candidates_E = answer.candidate_logprobs_E[len(answer.candidate_logprobs_E) - num_rows * width :]
    return _Block(rows=_rows(answer, slice(num_skipped, None)), candidates_NC=candidates_E.reshape(num_rows, width))


def _rows(answer: RowAnswer, rows: slice) -> RowColumns:
    return {
        "is_finite_R": answer.states_R[rows] == FINITE,
        "support_ids_RK": answer.support_ids_RK[rows],
        "support_logprobs_RK": answer.support_logprobs_RK[rows],
        "sampled_logprobs_R": answer.sampled_logprobs_R[rows],
        "log_tail_mass_R": answer.log_tail_mass_R[rows],
        "entropies_R": answer.entropies_R[rows],
    }
