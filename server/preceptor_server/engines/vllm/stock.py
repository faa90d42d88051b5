"""The stock way to ask vLLM: prompt logprobs, as any recent version answers them, cut down to the response's rows.

It gives the likeliest tokens and the sampled one at temperature 1: no entropy, no candidates. The tail is what is left
of 1. Knows vLLM's answers, not its API.
"""

# P = prompt tokens, T = tokens of a response, N = scored positions, K = support size, L = positions of an answer

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_server.engines.assembly import response_columns
from preceptor_server.types import ResponseColumns, ResponseToScore, ScoreGroup


def token_ids_of(group: ScoreGroup, response: ResponseToScore) -> TokenArray:
    """The request's tokens: up to the last scored one, whose logprob vLLM gives only when it stands in the prompt."""
    last = int(np.flatnonzero(response.score_mask_T)[-1])
    return np.concatenate([group.prompt_ids_P, response.ids_T[: last + 1]])


def columns_of_response(
    group: ScoreGroup,
    response: ResponseToScore,
    prompt_logprobs: Any,  # Any: vLLM's FlatLogprobs, or a list of dicts
) -> ResponseColumns:
    """`prompt_logprobs[i]` are those of the request's token i, given the ones before it."""
    positions_N = np.flatnonzero(response.score_mask_T) + len(group.prompt_ids_P)
    read = _read_flat if hasattr(prompt_logprobs, "start_indices") else _read_dicts
    sampled_N, ids_NK, logprobs_NK = read(prompt_logprobs, positions_N, group.top_k)
    # vLLM leaves the order of equal logprobs open: ours is by ascending id.
    order_NK = np.lexsort((ids_NK, -logprobs_NK), axis=1)
    ids_NK, logprobs_NK = np.take_along_axis(ids_NK, order_NK, 1), np.take_along_axis(logprobs_NK, order_NK, 1)
    rows = {
        "is_finite_R": np.isfinite(sampled_N) & np.isfinite(logprobs_NK[:, 0]),
        "support_ids_RK": ids_NK,
        "support_logprobs_RK": logprobs_NK,
        "sampled_logprobs_R": sampled_N,
        "log_tail_mass_R": _log_rest(logprobs_NK),
    }
    return response_columns(response, rows, None, group.top_k)


_Read = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def _read_flat(flat: Any, positions_N: npt.NDArray[np.int64], top_k: int) -> _Read:
    """Each position holds the token itself, then the K likeliest in order: K + 1 entries."""
    width = top_k + 1
    start, stop = flat.start_indices[int(positions_N[0])], flat.end_indices[int(positions_N[-1])]
    rows_N = positions_N - positions_N[0]
    ids_LW = np.array(flat.token_ids[start:stop], np.int64).reshape(-1, width)[rows_N]
    logprobs_LW = np.array(flat.logprobs[start:stop], np.float64).reshape(-1, width)[rows_N]
    return logprobs_LW[:, 0], ids_LW[:, 1:], logprobs_LW[:, 1:]


def _read_dicts(dicts: Any, positions_N: npt.NDArray[np.int64], top_k: int) -> _Read:
    """Each position maps ids to logprobs with ranks; the first entry is the token itself, and may be one of the K."""
    sampled, ids, logprobs = [], [], []
    for position in positions_N.tolist():
        entries = list(dicts[position].items())
        sampled.append(entries[0][1].logprob)
        best = sorted(entries, key=lambda entry: entry[1].rank)[:top_k]
        ids.append([token_id for token_id, _ in best])
        logprobs.append([entry.logprob for _, entry in best])
    return np.array(sampled), np.array(ids, np.int64), np.array(logprobs)


def _log_rest(logprobs_NK: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log(1 - their mass); -inf where rounding leaves nothing. Exact to about 1e-7 of mass, as fp32 logprobs are."""
    rest_N = 1.0 - np.exp(logprobs_NK).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_rest_N: npt.NDArray[np.float64] = np.log(np.maximum(rest_N, 0.0))
    return log_rest_N
