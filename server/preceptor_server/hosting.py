"""The life of hosted teachers: loads one, checks it, drains it, and closes it, while the others serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from preceptor_server.alignment.aligner import Aligner, build_aligner
from preceptor_server.alignment.chat_template import DEFAULT
from preceptor_server.alignment.prompt_reader import PromptReader
from preceptor_server.alignment.selftest import check_alignment
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.workbench import Workbench
from preceptor_server.config import TeacherSettings
from preceptor_server.engines.base import Engine
from preceptor_server.engines.building import build_engine, check_engine_class, load_engine, load_teacher_tokenizer
from preceptor_server.errors import InvalidTokenizerError, StartupError
from preceptor_server.hosted import HostedTeacher, with_turn_end
from preceptor_server.observability.metrics import Metrics
from preceptor_server.observability.observer import BatchObserver
from preceptor_server.observability.state_metrics import TeacherState
from preceptor_server.observability.tracing import NO_TRACING, Tracing
from preceptor_server.scheduling.device_turns import DeviceTurns
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.settling import settle_engine
from preceptor_server.supervision import SupervisedEngine, supervise
from preceptor_server.teachers import Teachers

logger = logging.getLogger(__name__)

OnHealth = Callable[[str, bool], Awaitable[None]]
"""Told a teacher's name, and whether it can be asked, whenever that changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """Puts teachers into the map that the edges look into, and takes them out."""

    teachers: Teachers
    on_health: OnHealth
    metrics: Metrics
    workbench: Workbench
    tracing: Tracing = NO_TRACING
    turns: DeviceTurns = field(default_factory=DeviceTurns)
    """Of the teachers that have a weight."""
    observe_batches: Callable[[BatchObserver], BatchObserver] = field(default=lambda observer: observer)
    """Isolates an observer of batches: whatever it raises, scoring goes on."""
    _closing: dict[asyncio.Task[None], str] = field(default_factory=dict)
    """Names of the teachers that are closed once nobody uses them, each by a task of its own."""

    async def add(self, name: str, settings: TeacherSettings) -> None:
        """Loads a teacher and serves it; one of that name is replaced, and closed once nobody uses it. Of one name no
        third is loaded beside two. Raises StartupError, and leaves what serves as it is."""
        closing = [task for task, of in self._closing.items() if of == name]
        if closing:
            logger.info("teacher waits until the one before the last is closed name=%s", name)
        await self._closed(closing)
        observer = self.observe_batches(self.metrics.of_teacher(name))
        teacher = await load_teacher(
            name,
            settings,
            workbench=self.workbench,
            observers=[observer],
            tracing=self.tracing,
            turns=self.turns,
        )
        teacher.scheduler.start()
        self.metrics.host(name, partial(state_of, teacher))
        before = self.teachers.put(teacher)
        if before is not None:
            self._close_later(before)
        await self.on_health(name, True)
        if isinstance(teacher.engine, SupervisedEngine):
            teacher.engine.start(on_change=lambda is_alive: self._tell(teacher, is_alive=is_alive))

    async def remove(self, name: str) -> None:
        """Takes a teacher out: calls that have begun are finished, new ones do not find it. It is closed after them."""
        teacher = self.teachers.take(name)
        if teacher is not None:
            self._close_later(teacher)
            self.metrics.forget(name)
            await self.on_health(name, False)

    async def drain(self, seconds: float) -> None:
        """Nothing new is taken by any of them. Returns once everything is answered, by those too that were replaced;
        after `seconds` what is not is told to go elsewhere."""
        teachers = (*self.teachers.hosted, *self.teachers.leaving)
        await asyncio.gather(*(teacher.scheduler.drain(seconds) for teacher in teachers))

    async def close(self) -> None:
        """Closes all of them. Calls that still wait are failed."""
        for teacher in self.teachers.hosted:
            self.teachers.take(teacher.name)
            self._close_later(teacher)
        self.teachers.abandon()
        await self._closed(list(self._closing))

    def _close_later(self, teacher: HostedTeacher) -> None:
        task = asyncio.get_running_loop().create_task(self._close(teacher), name="close teacher")
        self._closing[task] = teacher.name
        task.add_done_callback(self._has_closed)

    def _has_closed(self, task: asyncio.Task[None]) -> None:
        name = self._closing.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("teacher not closed name=%s", name, exc_info=error)

    @staticmethod
    async def _closed(closing: Sequence[asyncio.Task[None]]) -> None:
        if closing:
            await asyncio.wait(closing)

    async def _close(self, teacher: HostedTeacher) -> None:
        revision = teacher.engine.info().revision
        await self.teachers.unused(teacher)
        await close_teacher(teacher)
        logger.info("teacher closed name=%s revision=%s", teacher.name, revision)

    async def _tell(self, teacher: HostedTeacher, *, is_alive: bool) -> None:
        if self.teachers.get(teacher.name) is teacher:  # not of one that was replaced
            await self.on_health(teacher.name, is_alive)


def state_of(teacher: HostedTeacher) -> TeacherState:
    """What metrics show of a teacher at this moment."""
    scheduler = teacher.scheduler
    return TeacherState(
        waiting_by_tenant=dict(scheduler.waiting_by_tenant()),
        num_groups_in_flight=scheduler.num_groups_in_flight,
        num_tokens_in_flight=scheduler.num_tokens_in_flight,
        engine=teacher.info.engine,
        revision=teacher.info.revision,
    )


async def load_teacher(
    name: str,
    settings: TeacherSettings,
    *,
    workbench: Workbench,
    observers: Sequence[BatchObserver] = (),
    tracing: Tracing = NO_TRACING,
    turns: DeviceTurns | None = None,
) -> HostedTeacher:
    """A teacher that has passed its self-tests; its scheduler is not started. Raises StartupError."""
    await asyncio.to_thread(check_engine_class, settings.engine)
    tokenizer = await asyncio.to_thread(load_teacher_tokenizer, settings.engine)
    engine = supervise(build_engine(settings.engine, tokenizer))
    await _load(engine, settings)
    aligner: Aligner | None = None
    reader: PromptReader | None = None
    try:
        check_vocabularies(engine, tokenizer)
        _tell_templates(tokenizer)
        await settle_engine(engine, seconds=settings.engine.self_test_seconds)
        aligner = await _checked_aligner(tokenizer, engine, settings)
        if tokenizer is not None:
            segmenter = aligner.segmenter if aligner else None
            reader = PromptReader(tokenizer, workbench=workbench, segmenter=segmenter)
            await reader.start()
        return HostedTeacher(
            name=name,
            engine=engine,
            tokenizer=tokenizer,
            aligner=aligner,
            scheduler=Scheduler(
                engine,
                settings.scheduler,
                observers=observers,
                tracing=tracing,
                teacher=name,
                turns=None if settings.weight is None else turns,
                weight=settings.weight or 1.0,
            ),
            limits=settings.limits,
            max_queue_tokens=settings.scheduler.max_queue_tokens,
            workbench=workbench,
            reader=reader,
            weights_folder=settings.engine.weights_folder,
        )
    except BaseException:
        if reader is not None:
            reader.close()
        if aligner is not None:
            await aligner.registry.close()
        await asyncio.to_thread(engine.close)
        raise


async def _load(engine: Engine, settings: TeacherSettings) -> None:
    """A thread cannot be stopped: where the load is given up, what it loads is closed after it."""
    loading = asyncio.ensure_future(asyncio.to_thread(load_engine, engine, settings.engine))
    try:
        await asyncio.shield(loading)
    except asyncio.CancelledError:
        await asyncio.wait([loading])
        if loading.exception() is None:
            await asyncio.to_thread(engine.close)
        raise


async def close_teacher(teacher: HostedTeacher) -> None:
    """Ends its scheduler, its registrations, its engine."""
    if teacher.aligner is not None:
        await teacher.aligner.registry.close()
    await teacher.scheduler.stop()
    if teacher.reader is not None:
        await asyncio.to_thread(teacher.reader.close)
    await asyncio.to_thread(teacher.engine.close)


def check_vocabularies(engine: Engine, tokenizer: TeacherTokenizer | None) -> None:
    """A tokenizer may know fewer tokens than the model has logits (padding), and special tokens beyond them (an
    image's, in a text-only copy of a model), whose prompts are refused. What text may become, and what ends a response,
    lies within. Raises StartupError."""
    size = engine.info().vocabulary_size
    for token_id in with_turn_end(engine.info(), tokenizer).end_token_ids:
        if not 0 <= token_id < size:
            raise StartupError(
                f"engine: the end token {token_id} lies beyond the model's {size} logits: mend eos_token_id in its "
                "generation_config.json and config.json, or use the tokenizer that the model was trained with"
            )
    if tokenizer is None:
        return
    if tokenizer.text_size > size:
        raise StartupError(
            f"engine.tokenizer has {tokenizer.text_size} tokens and the model only {size} logits: they do not belong "
            "together"
        )
    beyond = [token.text for token in tokenizer.special_tokens if token.id >= size]
    if beyond:
        logger.warning("special tokens beyond the model's %d logits, refused in prompts: %s", size, ", ".join(beyond))


def _tell_templates(tokenizer: TeacherTokenizer | None) -> None:
    """Which of several chat templates is used."""
    if tokenizer is not None and tokenizer.template_names:
        used = "none" if tokenizer.chat_template is None else DEFAULT
        logger.warning("chat templates %s; used=%s", ", ".join(tokenizer.template_names), used)


async def _checked_aligner(
    tokenizer: TeacherTokenizer | None, engine: Engine, settings: TeacherSettings
) -> Aligner | None:
    """None, with a warning, where the teacher's tokenizer is not one that others can be laid beside."""
    if tokenizer is None:
        return None
    try:
        info = with_turn_end(engine.info(), tokenizer)
        aligner = await asyncio.to_thread(build_aligner, tokenizer, info, settings.limits)
        await check_alignment(engine, aligner)
    except InvalidTokenizerError as error:
        logger.warning("students are scored as they are, and only with the teacher's own tokenizer: %s", error)
        return None
    return aligner
