"""One teacher as the edges see it: its name, what its engine says of itself, its tokenizer, its scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from preceptor_server.config import LimitsConfig
from preceptor_server.scheduler import Scheduler
from preceptor_server.types import EngineInfo

if TYPE_CHECKING:
    from preceptor_server.alignment.aligner import Aligner
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedTeacher:
    """A teacher that this process hosts."""

    name: str
    info: EngineInfo
    tokenizer: TeacherTokenizer | None
    aligner: Aligner | None
    """None where there is no tokenizer, or where it cannot be known which bytes its tokens stand for."""
    scheduler: Scheduler
    limits: LimitsConfig
    max_queue_tokens: int

    @property
    def tokenizer_id(self) -> str:
        """The tokenizer's fingerprint; for a teacher without one, a name that no real tokenizer has."""
        if self.tokenizer is None:
            return f"none-{self.info.vocabulary_size}"
        return self.tokenizer.tokenizer_id

    @property
    def max_top_k(self) -> int:
        return min(self.limits.max_top_k, self.info.largest_top_k)
