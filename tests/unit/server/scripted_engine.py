"""An engine that a test steers by hand: it notes what it is asked, and answers when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from preceptor.wire import LogprobArray, PositionStatus, TokenArray
from preceptor_server.types import EngineInfo, GroupColumns, ResponseColumns, ScoreGroup


def columns_named_after(group: ScoreGroup) -> GroupColumns:
    """Columns whose sampled logprobs are the response's own ids, so that a mix-up shows."""
    return tuple(
        ResponseColumns(
            status_T=np.full(len(response.ids_T), PositionStatus.OK, np.uint8),
            support_ids_NK=np.zeros((len(response.ids_T), group.top_k), np.int64),
            support_logprobs_NK=np.zeros((len(response.ids_T), group.top_k), np.float32),
            sampled_logprobs_N=response.ids_T.astype(np.float32),
            log_tail_mass_N=np.zeros(len(response.ids_T), np.float32),
            entropies_N=np.zeros(len(response.ids_T), np.float32),
        )
        for response in group.responses
    )


class ScriptedEngine:
    """The Engine protocol. `gate` holds every batch back until it is set; `errors` are raised first, in order.

    With `max_tokens_in_flight` it is an engine that batches by itself."""

    def __init__(
        self,
        *,
        max_concurrent_batches: int = 1,
        is_open: bool = True,
        min_shared_prefix: int | None = None,
        max_tokens_in_flight: int | None = None,
    ) -> None:
        self.batches: list[list[ScoreGroup]] = []
        self.errors: list[Exception] = []
        self.drops_an_answer = False
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()
        self.revision = "1"
        self.adapters: dict[str, str] = {}
        self.num_cancelled = 0
        self.num_in_flight = 0
        self.most_in_flight = 0
        self._arrival = asyncio.Condition()
        self._max_concurrent_batches = max_concurrent_batches
        self._min_shared_prefix = min_shared_prefix
        self._max_tokens_in_flight = max_tokens_in_flight

    def load(self) -> None:
        pass

    def close(self) -> None:
        pass

    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="scripted",
            model="scripted",
            revision=self.revision,
            dtype="float32",
            device="cpu",
            vocabulary_size=100,
            max_model_len=1000,
            max_concurrent_batches=self._max_concurrent_batches,
            min_shared_prefix=self._min_shared_prefix,
            batches_itself=self._max_tokens_in_flight is not None,
            max_tokens_in_flight=self._max_tokens_in_flight or 0,
            adapters=dict(self.adapters),
        )

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        async with self._arrival:
            self.batches.append(list(batch))
            self._arrival.notify_all()
        try:
            await self.gate.wait()
            if self.errors:
                raise self.errors.pop(0)
            answers = [columns_named_after(group) for group in batch]
            return answers[1:] if self.drops_an_answer else answers
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_in_flight -= 1

    async def reference_logprobs(self, token_ids: TokenArray, *, first_row: int = 0) -> LogprobArray:
        raise NotImplementedError("the scheduler never asks")

    async def has_begun(self, num_batches: int) -> None:
        """Returns once that many batches have arrived."""
        async with self._arrival:
            await self._arrival.wait_for(lambda: len(self.batches) >= num_batches)
