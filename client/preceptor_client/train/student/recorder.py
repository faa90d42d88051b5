"""LogitsProcessor that records student logprobs, entropies and top-k ids during generation."""

# B = responses written at once, L = tokens so far, V = vocabulary, T = tokens of a response, K = tokens kept

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor

from preceptor_client.train.student.view import StudentView


@dataclass(slots=True, eq=False)
class _Step:
    """One token of every response."""

    entropies_B: torch.Tensor
    top_ids_BK: torch.Tensor | None
    logprobs_B: torch.Tensor | None = None
    """Known once the token is."""


class StudentRecorder(LogitsProcessor):
    """Changes no logit. transformers calls processors of its caller before its own temperature and top-p."""

    def __init__(self, *, temperature: float, num_top_ids: int = 0) -> None:
        """`temperature` is that of the loss; with `num_top_ids` the likeliest tokens are kept too."""
        self._temperature = temperature
        self._num_top_ids = num_top_ids
        self._steps: list[_Step] = []
        self._last_logprobs_BV: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Called before each token is drawn: `input_ids` [B, L] end with the one drawn before."""
        self._note_drawn(input_ids[:, -1])
        logprobs_BV = torch.log_softmax(scores.float() / self._temperature, dim=1)
        top_ids_BK = logprobs_BV.topk(self._num_top_ids, dim=1).indices if self._num_top_ids else None
        # A probability of 0 with a logprob of -inf adds nothing.
        entropies_B = -(logprobs_BV.exp() * logprobs_BV.clamp(min=torch.finfo(torch.float32).min)).sum(dim=1)
        self._steps.append(_Step(entropies_B, top_ids_BK))
        self._last_logprobs_BV = logprobs_BV
        return scores

    def finish(self, last_ids_B: torch.Tensor, *, lengths: list[int]) -> list[StudentView]:
        """One view per response, cut to its length; `last_ids_B` are the tokens drawn last. Begins anew after that."""
        self._note_drawn(last_ids_B)
        steps, self._steps, self._last_logprobs_BV = self._steps, [], None
        logprobs_BT = torch.stack([step.logprobs_B for step in steps if step.logprobs_B is not None], dim=1)
        entropies_BT = torch.stack([step.entropies_B for step in steps], dim=1)
        assert logprobs_BT.shape == entropies_BT.shape, "every token was drawn after its logits"
        top_ids = [step.top_ids_BK for step in steps if step.top_ids_BK is not None]
        top_ids_BTK = torch.stack(top_ids, dim=1).cpu().numpy() if top_ids else None
        return [
            StudentView(
                logprobs_T=_float32(logprobs_BT[row, :length]),
                entropies_T=_float32(entropies_BT[row, :length]),
                top_ids_TK=None if top_ids_BTK is None else top_ids_BTK[row, :length].astype(np.int64),
            )
            for row, length in enumerate(lengths)
        ]

    def _note_drawn(self, ids_B: torch.Tensor) -> None:
        if self._last_logprobs_BV is not None:
            self._steps[-1].logprobs_B = self._last_logprobs_BV.gather(1, ids_B[:, None])[:, 0]


def _float32(values: torch.Tensor) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return values.cpu().numpy().astype(np.float32)
