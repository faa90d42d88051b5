"""Teachers for tests of the edges: the fake engine or a tiny tokenizer, and whatever the test wants to be different."""

from __future__ import annotations

from dataclasses import replace

from preceptor_server.alignment.aligner import build_aligner
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.config import EngineConfig, LimitsConfig, SchedulerConfig
from preceptor_server.engines.fake import FakeEngine
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduler import Scheduler
from tokenizers import processors

from tests.tiny import tiny_tokenizer


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
) -> HostedTeacher:
    config = EngineConfig(kind="fake", fake_vocabulary_size=vocabulary_size, max_model_len=max_model_len)
    engine = FakeEngine(config)
    info = replace(
        engine.info(),
        applies_temperature=applies_temperature,
        is_batch_invariant_on_request=is_batch_invariant_on_request,
        scores_candidates=scores_candidates,
        computes_entropies=computes_entropies,
    )
    return HostedTeacher(
        name="professor",
        info=info,
        tokenizer=tokenizer,
        aligner=build_aligner(tokenizer, info, limits or LimitsConfig()) if tokenizer else None,
        scheduler=Scheduler(engine, SchedulerConfig()),
        limits=limits or LimitsConfig(),
        max_queue_tokens=1_000_000,
    )


def bos_tokenizer() -> TeacherTokenizer:
    """One that writes <|im_start|> before every text, unless told otherwise."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    return TeacherTokenizer(tokenizer)
