"""Teachers for tests of the edges: the fake engine or a tiny tokenizer, and whatever the test wants to be different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from preceptor_server.alignment.aligner import build_aligner
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.config import LimitsConfig, SchedulerConfig
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.types import EngineInfo
from tokenizers import processors

from tests.engines.fake import FakeEngine
from tests.tiny import tiny_tokenizer


class DescribedEngine(FakeEngine):
    """The fake engine, which says of itself what a test wants it to."""

    def __init__(self, *, vocabulary_size: int, max_model_len: int | None = None, **says: Any) -> None:
        """`says`: the fields of EngineInfo."""
        super().__init__(vocabulary_size=vocabulary_size, max_model_len=max_model_len)
        self._says = says

    def info(self) -> EngineInfo:
        return replace(super().info(), **self._says)


def hosted_teacher(
    *,
    vocabulary_size: int = 300,
    max_model_len: int = 64,
    tokenizer: TeacherTokenizer | None = None,
    limits: LimitsConfig | None = None,
    applies_temperature: bool = True,
    is_batch_invariant_on_request: bool = True,
    scores_candidates: bool = True,
    computes_entropies: bool = True,
    adapters: dict[str, str] | None = None,
    weights_folder: Path | None = None,
) -> HostedTeacher:
    engine = DescribedEngine(
        vocabulary_size=vocabulary_size,
        max_model_len=max_model_len,
        applies_temperature=applies_temperature,
        is_batch_invariant_on_request=is_batch_invariant_on_request,
        scores_candidates=scores_candidates,
        computes_entropies=computes_entropies,
        **({"adapters": adapters} if adapters else {}),
    )
    return HostedTeacher(
        name="professor",
        engine=engine,
        tokenizer=tokenizer,
        aligner=build_aligner(tokenizer, engine.info(), limits or LimitsConfig()) if tokenizer else None,
        scheduler=Scheduler(engine, SchedulerConfig()),
        limits=limits or LimitsConfig(),
        max_queue_tokens=1_000_000,
        weights_folder=weights_folder,
    )


def bos_tokenizer() -> TeacherTokenizer:
    """One that writes <|im_start|> before every text, unless told otherwise."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return TeacherTokenizer(tokenizer)
