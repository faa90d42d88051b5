"""Defines the record of the student's distribution before each token that it wrote. Numpy only."""

# T = tokens of the response, K = support size

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentView:
    """The student's distribution before each token, over the whole vocabulary and before top-p, at the temperature of
    the loss (not that of the sampling). NaN at tokens that the student did not write."""

    logprobs_T: npt.NDArray[np.float32]
    """Of the token that was written."""
    entropies_T: npt.NDArray[np.float32]
    """Nats."""
    top_ids_TK: TokenArray | None = None
    """The student's likeliest tokens, by descending logprob; None unless the support needs them."""


def joined_views(views: list[StudentView]) -> StudentView:
    """The views of consecutive tokens as one."""
    if len(views) == 1:
        return views[0]
    tops = [view.top_ids_TK for view in views if view.top_ids_TK is not None]
    return StudentView(
        logprobs_T=np.concatenate([view.logprobs_T for view in views]),
        entropies_T=np.concatenate([view.entropies_T for view in views]),
        top_ids_TK=np.concatenate(tops) if len(tops) == len(views) else None,
    )


def unwritten_view(num_tokens: int, *, num_top_ids: int | None = None) -> StudentView:
    """Of tokens that the student did not write. Its likeliest tokens, which nobody may use, are the first ids."""
    nothing_T = np.full(num_tokens, np.nan, np.float32)
    tops = None if num_top_ids is None else np.tile(np.arange(num_top_ids), (num_tokens, 1))
    return StudentView(logprobs_T=nothing_T, entropies_T=nothing_T, top_ids_TK=tops)
