"""A deterministic stand-in without weights, for tests of everything that is not the model. Numpy only.

What stands for weights, or for an adapter, is a folder with a file `seed` that holds a whole number. The logits after a
prefix depend on it and on the prefix's last token and length, so a shifted or mixed-up answer shows. Columns are
computed densely, sorted in full: an oracle of their definition, independent of the code that other engines share.
A server is started with it by `fake_arguments`, a teacher is built with it from `fake_config`.
"""

# T = tokens of a response, N = its scored positions, V = vocabulary size, K = support size, C = candidates per position

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, PositionStatus, TokenArray
from preceptor_server.engines.base import Restore
from preceptor_server.engines.config import OwnEngineConfig
from preceptor_server.errors import WeightUpdateError
from preceptor_server.types import EngineInfo, GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup

FAKE_KIND = "tests.engines.fake:FakeEngine"
_MAX_MODEL_LEN = 4096
_SPREAD = 4.0
"""Half the range of the logits: wide enough that the support differs from prefix to prefix."""
_MAX_LOGITS_ON_LOOP = 4_000_000
"""Logits that exist at once, 32 MB of each of their forms; and the most that are computed on the event loop."""
_SEED_FILE = "seed"
_RADIANS_PER_SEED = 0.7
"""No whole number of these is a whole turn, so that no two seeds have the same logits."""


class FakeEngine:
    """Logits out of a sine."""

    def __init__(
        self,
        *,
        vocabulary_size: int = 256,
        tokenizer_size: int | None = None,
        max_model_len: int | None = None,
        seconds_per_token: float = 0.0,
        applies_temperature: bool = True,
        scores_candidates: bool = True,
        computes_entropies: bool = True,
    ) -> None:
        """The vocabulary is raised to the tokenizer's where there is one."""
        self._vocabulary_size = max(vocabulary_size, tokenizer_size or 0)
        self._max_model_len = max_model_len or _MAX_MODEL_LEN
        self._seconds_per_token = seconds_per_token
        self._applies_temperature = applies_temperature
        self._scores_candidates = scores_candidates
        self._computes_entropies = computes_entropies
        self._seed = 0
        self._adapters: dict[str, int] = {}

    def load(self) -> None:
        pass

    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="fake",
            model="fake",
            revision=self._revision,
            adapters={name: f"{self._revision}+{seed}" for name, seed in self._adapters.items()},
            dtype="float32",
            device="cpu",
            vocabulary_size=self._vocabulary_size,
            max_model_len=self._max_model_len,
            end_token_ids=(0,),
            applies_temperature=self._applies_temperature,
            scores_candidates=self._scores_candidates,
            computes_entropies=self._computes_entropies,
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        await asyncio.sleep(self._seconds_per_token * sum(group.num_tokens for group in batch))
        num_logits = self._vocabulary_size * sum(len(one.ids_T) for group in batch for one in group.responses)
        if num_logits > _MAX_LOGITS_ON_LOOP:
            return await asyncio.to_thread(self._score_batch, batch)
        return self._score_batch(batch)

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        return _log_softmax(self._logits(token_ids, adapter="")[first_row:]).astype(np.float32)

    async def load_weights(self, folder: Path) -> Restore:
        previous, self._seed = self._seed, _read_seed(folder)

        async def restore() -> None:
            self._seed = previous

        return restore

    async def load_adapter(self, name: str, folder: Path) -> None:
        self._adapters[name] = _read_seed(folder)

    async def unload_adapter(self, name: str) -> None:
        del self._adapters[name]

    def close(self) -> None:
        pass

    @property
    def _revision(self) -> str:
        return f"fake-{self._vocabulary_size}" + (f"-{self._seed}" if self._seed else "")

    def _score_batch(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return [tuple(self._score_response(group, response) for response in group.responses) for group in batch]

    def _score_response(self, group: ScoreGroup, response: ResponseToScore) -> ResponseColumns:
        """A few rows at a time: the dense logits of a long response would fill the memory."""
        ids, first = np.concatenate([group.prompt_ids_P, response.ids_T]), len(group.prompt_ids_P) - 1
        num_rows = max(1, _MAX_LOGITS_ON_LOOP // self._vocabulary_size)
        blocks: list[ResponseColumns] = []
        for start in range(0, len(response.ids_T), num_rows):
            stop = min(start + num_rows, len(response.ids_T))
            logits_TV = self._logits(ids[first + start : first + stop], adapter=group.adapter, first=first + start)
            blocks.append(dense_columns(logits_TV / group.temperature, _cut(response, start, stop), top_k=group.top_k))
        columns = _joined(blocks)
        return columns if self._computes_entropies else replace(columns, entropies_N=None)

    def _logits(self, token_ids: TokenArray, *, adapter: str, first: int = 0) -> npt.NDArray[np.float64]:
        """After each of `token_ids`, of which `first` others came before."""
        seed = self._seed + (self._adapters[adapter] if adapter else 0)
        lengths_T1 = np.arange(first + 1, first + len(token_ids) + 1)[:, None]
        logits: npt.NDArray[np.float64] = _SPREAD * np.sin(
            (token_ids[:, None] + 1) * 1.7
            + lengths_T1 * 0.9
            + np.arange(self._vocabulary_size)[None, :] * 2.3
            + seed * _RADIANS_PER_SEED
        )  # fmt: skip
        return logits


def fake_config(
    *, max_model_len: int | None = None, tokenizer: str | None = None, **options: int | float | bool
) -> OwnEngineConfig:
    """Settings of a server's fake engine; `options` are the constructor's arguments."""
    return OwnEngineConfig(kind=FAKE_KIND, max_model_len=max_model_len, tokenizer=tokenizer, options=dict(options))


def fake_arguments(**options: int | float | bool) -> list[str]:
    """The command line of a server with the fake engine."""
    return ["--engine.kind", FAKE_KIND, *(["--engine.options", json.dumps(options)] if options else [])]


def dense_columns(
    scaled_logits_TV: npt.NDArray[np.float64], response: ResponseToScore, *, top_k: int
) -> ResponseColumns:
    """Columns by their definition: a full log-softmax in float64 and a full sort, equal logits by ascending id."""
    logits_NV = scaled_logits_TV[response.score_mask_T]
    logprobs_NV = _log_softmax(logits_NV)
    order_NV = np.argsort(-logits_NV, axis=1, kind="stable")
    rows_N = np.arange(len(logits_NV))
    tail_N = np.exp(np.take_along_axis(logprobs_NV, order_NV[:, top_k:], axis=1)).sum(axis=1)
    probs_NV = np.exp(logprobs_NV)
    with np.errstate(divide="ignore"):
        log_tail_N = np.log(tail_N)
    candidates_NC = None
    if response.candidate_ids_TC is not None:
        candidate_ids_NC = response.candidate_ids_TC[response.score_mask_T]
        candidates_NC = np.take_along_axis(logprobs_NV, candidate_ids_NC, axis=1).astype(np.float32)
    return ResponseColumns(
        status_T=np.where(response.score_mask_T, PositionStatus.OK, PositionStatus.EXCLUDED).astype(np.uint8),
        support_ids_NK=order_NV[:, :top_k].astype(np.int64),
        support_logprobs_NK=np.take_along_axis(logprobs_NV, order_NV[:, :top_k], axis=1).astype(np.float32),
        sampled_logprobs_N=logprobs_NV[rows_N, response.ids_T[response.score_mask_T]].astype(np.float32),
        log_tail_mass_N=log_tail_N.astype(np.float32),
        entropies_N=-(probs_NV * logprobs_NV).sum(axis=1).astype(np.float32),
        candidate_logprobs_NC=candidates_NC,
    )


def _cut(response: ResponseToScore, start: int, stop: int) -> ResponseToScore:
    named_TC = response.candidate_ids_TC
    return ResponseToScore(
        ids_T=response.ids_T[start:stop],
        score_mask_T=response.score_mask_T[start:stop],
        candidate_ids_TC=None if named_TC is None else named_TC[start:stop],
    )


def _joined(blocks: Sequence[ResponseColumns]) -> ResponseColumns:
    """Of consecutive pieces of one response, which all have the same columns."""
    names = [name for name in ResponseColumns.__dataclass_fields__ if getattr(blocks[0], name) is not None]
    columns = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    return replace(blocks[0], **columns)


def _read_seed(folder: Path) -> int:
    try:
        return int((folder / _SEED_FILE).read_text())
    except (OSError, ValueError) as error:
        raise WeightUpdateError("path", f"{folder.name} holds no file {_SEED_FILE!r} with a whole number") from error


def _log_softmax(logits_TV: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits_TV - logits_TV.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
