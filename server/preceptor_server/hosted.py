"""One teacher as the edges see it: its name, what its engine says of itself, its tokenizer, its scheduler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from preceptor.turns import joined_ids

from preceptor_server.config import LimitsConfig
from preceptor_server.engines.base import Engine, UpdatesWeights
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import EngineInfo

if TYPE_CHECKING:
    from preceptor_server.alignment.aligner import Aligner
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedTeacher:
    """A teacher that this process hosts."""

    name: str
    engine: Engine
    tokenizer: TeacherTokenizer | None
    aligner: Aligner | None
    """None where there is no tokenizer, or where it cannot be known which bytes its tokens stand for."""
    scheduler: Scheduler
    limits: LimitsConfig
    max_queue_tokens: int
    weights_folder: Path | None = None
    """Where new weights may be taken from. None: they are not."""

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself at this moment: it may have other weights by the next."""
        return with_turn_end(self.engine.info(), self.tokenizer)

    @property
    def takes_weights(self) -> bool:
        """Whether its weights, or its adapters, can be replaced while it serves."""
        return self.weights_folder is not None and isinstance(self.engine, UpdatesWeights)

    @property
    def tokenizer_id(self) -> str:
        """The tokenizer's fingerprint; for a teacher without one, a name that no real tokenizer has."""
        if self.tokenizer is None:
            return f"none-{self.info.vocabulary_size}"
        return self.tokenizer.tokenizer_id

    @property
    def max_top_k(self) -> int:
        return min(self.limits.max_top_k, self.info.largest_top_k)


def with_turn_end(info: EngineInfo, tokenizer: TeacherTokenizer | None) -> EngineInfo:
    """What the chat template ends a turn with is an end too, though the model's settings may not name it."""
    if tokenizer is None:
        return info
    return replace(info, end_token_ids=joined_ids(list(info.end_token_ids), tokenizer.turn_end_id))
