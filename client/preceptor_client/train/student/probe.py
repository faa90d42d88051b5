"""Tries ways of running a batch on texts of one length, against forwards of single texts without padding or cache."""

# T = tokens, W = tokens written, V = vocabulary, D = hidden size

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel
from transformers.utils import logging as transformers_logging

from preceptor_client.train.errors import StopRequestedError
from preceptor_client.train.student.flat import flat_hidden_states, flat_row, keeps_all_tokens
from preceptor_client.train.student.head import Head
from preceptor_client.train.student.head.body import states_before_head
from preceptor_client.train.student.padded import padded_hidden_states
from preceptor_client.train.student.writing import Together, Writing, write_part

_log = logging.getLogger(__name__)

SHORTEST = 24
"""Tokens of the longest text of the shortest probe."""
_NUM_WRITTEN, _NUM_SHARED, _NUM_FIRST = 4, 2, 12
"""Tokens that are written after a prompt; that all texts share; and that are compared in texts of two lengths."""
_TOLERANCE, _HALF_TOLERANCE = 2e-5, 5e-2
"""Shares of the largest logit, or state, that rounding explains: at every token in fp32; at most tokens in half
precision, where a router may choose otherwise at some."""


class Probe:
    """A long text, a shorter one that the long one begins with, and another one as long as the first."""

    def __init__(self, model: PreTrainedModel, *, head: Head, pad_token_id: int, length: int) -> None:
        """`length` is that of the longest text, SHORTEST at least."""
        self._model = model
        self._head = head
        self._pad_token_id = pad_token_id
        ids = _ordinary_ids(model, size=head.vocabulary_size, count=2 * length)
        self._long, self._other = ids[:length], ids[:_NUM_SHARED] + ids[length + _NUM_SHARED :]
        # Neither half nor a round number: so that the two are out of step in whatever counts in blocks.
        self._short = self._long[: length * 3 // 5 | 1]
        self._plain_states: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def length_that_changes_all(self) -> int | None:
        """The number of tokens beyond which the first tokens' states are others than in a short text: 0 where every
        token changes those before it, None where none does up to this probe's length."""
        if self._agrees_with_first(len(self._long)):
            return None
        agrees, differs = _NUM_FIRST, len(self._long)
        while differs - agrees > 1:
            middle = (agrees + differs) // 2
            agrees, differs = (middle, differs) if self._agrees_with_first(middle) else (agrees, middle)
        return agrees if agrees > _NUM_FIRST else 0

    @torch.no_grad()
    def can_write(self, writing: Writing) -> bool:
        """Whether the logits before each written token are those of a plain forward."""
        texts = {Together.ALONE: [self._long], Together.ONE_LENGTH: [self._long, self._other]}.get(
            writing.together, [self._long, self._short]
        )
        return self._fits(lambda: self._agree_in_writing(texts, writing), what=f"writing: {writing}")

    @torch.no_grad()
    def can_run_flat(self) -> bool:
        """Whether the states of sequences without padding are those of plain forwards. Not where the model does not
        keep all tokens, or where its attention is its own."""
        return self._fits(self._agree_flat, what="training: flat")

    @torch.no_grad()
    def can_run_padded(self) -> bool:
        """Whether those of sequences that are padded to the right are."""
        return self._fits(self._agree_padded, what="training: padded")

    def _fits(self, agree: Callable[[], bool], *, what: str) -> bool:
        try:
            with _quietly():
                return agree()
        except (torch.OutOfMemoryError, StopRequestedError):
            raise  # neither is the model's refusal
        except Exception as error:  # noqa: BLE001  a model may refuse with any error what it was not made for
            _log.debug("the student cannot do this: what=%s error=%r", what, error)
            return False

    def _agree_in_writing(self, texts: Sequence[list[int]], writing: Writing) -> bool:
        prompts = [text[:-_NUM_WRITTEN] for text in texts]
        for part in writing.parts(prompts):
            forced = _Forced([texts[index][-_NUM_WRITTEN:] for index in part])
            write_part(
                self._model,
                [prompts[index] for index in part],
                writing=writing,
                config=GenerationConfig(max_new_tokens=_NUM_WRITTEN, pad_token_id=self._pad_token_id),
                pad_token_id=self._pad_token_id,
                observer=forced,
            )
            for row, index in enumerate(part):
                wanted_WD = self._plain(texts[index])[-_NUM_WRITTEN - 1 : -1]
                if not self._is_close(forced.logits_WV(row), self._head.logits(wanted_WD).float()):
                    return False
        return True

    def _agree_flat(self) -> bool:
        takes_positions = "position_ids" in inspect.signature(self._model.forward).parameters
        if not (takes_positions and keeps_all_tokens(self._model)):
            return False
        texts = [self._long, self._short]
        shared, rests = self._long[:_NUM_SHARED], [text[_NUM_SHARED:] for text in texts]
        row = flat_row(shared, rests, device=next(self._model.parameters()).device)
        states_FD = flat_hidden_states(self._model, row)
        return all(
            self._is_close(states_FD[start : start + len(rest)], self._plain(text)[_NUM_SHARED:])
            for text, rest, start in zip(texts, rests, row.starts_B, strict=True)
        )

    def _agree_padded(self) -> bool:
        texts = [self._long, self._short]
        states_BTD = padded_hidden_states(self._model, texts, pad_token_id=self._pad_token_id)
        return all(
            self._is_close(states_TD[: len(text)], self._plain(text))
            for text, states_TD in zip(texts, states_BTD, strict=True)
        )

    def _agrees_with_first(self, length: int) -> bool:
        first_TD = self._states(self._long[:_NUM_FIRST])
        return self._is_close(self._states(self._long[:length])[:_NUM_FIRST], first_TD)

    def _plain(self, text: list[int]) -> torch.Tensor:
        """By a forward of this text alone, [T, D]; each is computed once."""
        key = id(text)
        if key not in self._plain_states:
            self._plain_states[key] = self._states(text)
        return self._plain_states[key]

    def _states(self, ids: list[int]) -> torch.Tensor:
        return states_before_head(self._model, torch.tensor([ids], device=next(self._model.parameters()).device))[0]

    def _is_close(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        differences_T = (ours.float() - theirs.float()).abs().amax(dim=1)
        is_half = self._model.dtype in (torch.bfloat16, torch.float16)
        difference = differences_T.median() if is_half else differences_T.max()
        # Not `difference > ...`: a NaN is no agreement.
        return bool(difference <= (_HALF_TOLERANCE if is_half else _TOLERANCE) * theirs.float().abs().max())


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what transformers says of ways that a model refuses."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


class _Forced(LogitsProcessor):
    """Makes transformers write given tokens, and keeps the logits before each."""

    def __init__(self, texts_BW: Sequence[Sequence[int]]) -> None:
        self._ids_BW = torch.tensor(texts_BW)
        self._logits: list[torch.Tensor] = []

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids_B1 = self._ids_BW[:, len(self._logits), None].to(scores.device)
        self._logits.append(scores.float())
        return torch.full_like(scores, float("-inf")).scatter(1, ids_B1, 0.0)

    def logits_WV(self, row: int) -> torch.Tensor:
        return torch.stack([logits_BV[row] for logits_BV in self._logits])


def _ordinary_ids(model: PreTrainedModel, *, size: int, count: int) -> list[int]:
    """Tokens that mean nothing special to the model: not those that its settings name (end, padding, images)."""
    configs = [model.config.to_dict(), model.config.get_text_config().to_dict()]
    named = {
        value
        for config in configs
        for name, value in config.items()
        if isinstance(value, int) and name.endswith(("_id", "_index"))
    }
    ordinary = [token for token in range(size) if token not in named]
    # Strides by a golden-ratio share: spread over the vocabulary, and no token twice for long.
    return [ordinary[int((place * 0.6180339887) % 1.0 * len(ordinary))] for place in range(1, count + 1)]
