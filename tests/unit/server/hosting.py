"""A hosted teacher for tests of the edges: the fake engine, and whatever the test wants to be different."""

from __future__ import annotations

from dataclasses import replace

from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.config import EngineConfig, LimitsConfig, SchedulerConfig
from preceptor_server.engines.fake import FakeEngine
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduler import Scheduler


def hosted_teacher(
    *,
    vocabulary_size: int = 300,
    max_model_len: int = 64,
    tokenizer: TeacherTokenizer | None = None,
    limits: LimitsConfig | None = None,
    applies_temperature: bool = True,
    is_batch_invariant_on_request: bool = True,
) -> HostedTeacher:
    config = EngineConfig(kind="fake", fake_vocabulary_size=vocabulary_size, max_model_len=max_model_len)
    engine = FakeEngine(config)
    return HostedTeacher(
        name="professor",
        info=replace(
            engine.info(),
            applies_temperature=applies_temperature,
            is_batch_invariant_on_request=is_batch_invariant_on_request,
        ),
        tokenizer=tokenizer,
        scheduler=Scheduler(engine, SchedulerConfig()),
        limits=limits or LimitsConfig(),
        max_queue_tokens=1_000_000,
    )
