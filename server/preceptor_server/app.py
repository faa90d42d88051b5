"""The composition root: builds the parts, checks the engine, serves until told to stop, drains."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from preceptor.model_source import InvalidSourceError, check_source
from preceptor.settings import dump_settings
from preceptor.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server

from preceptor_server.alignment.aligner import Aligner, build_aligner
from preceptor_server.alignment.chat_template import DEFAULT
from preceptor_server.alignment.selftest import check_alignment
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer, load_tokenizer
from preceptor_server.config import EngineConfig, ServerConfig
from preceptor_server.engines.base import Engine
from preceptor_server.engines.fake import FakeEngine
from preceptor_server.engines.mortal_fake import MortalFakeEngine
from preceptor_server.errors import InvalidTokenizerError, StartupError
from preceptor_server.hosted import HostedTeacher, with_turn_end
from preceptor_server.http.config import HttpConfig
from preceptor_server.reachable import joined
from preceptor_server.readiness import SERVICE_NAME, Readiness
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.servicer import TeacherServicer
from preceptor_server.serving import ScoreService
from preceptor_server.settling import settle_engine
from preceptor_server.supervision import SupervisedEngine, supervise
from preceptor_server.types import EngineInfo

if TYPE_CHECKING:
    from preceptor_server.http.listen import HttpSide  # imports the web framework

logger = logging.getLogger(__name__)


async def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight. Raises StartupError where it cannot start."""
    logger.info("config %s", json.dumps(dump_settings(config)))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    server = build_server(config)
    address = bind(server, config)  # before the model: a port in use is told in the first second
    http = open_http(config.http)
    try:
        await _serve(config, server, address, http, stop)
    finally:
        if http is not None:
            await http.stop(0)
    logger.info("stopped")


async def _serve(
    config: ServerConfig, server: grpc.aio.Server, address: str, http: HttpSide | None, stop: asyncio.Event
) -> None:
    tokenizer = load_teacher_tokenizer(config.engine)
    engine = supervise(build_engine(config.engine, tokenizer))
    await asyncio.to_thread(engine.load)
    scheduler = Scheduler(engine, config.scheduler)
    aligner: Aligner | None = None
    try:
        check_vocabularies(engine, tokenizer)
        _tell_templates(tokenizer)
        await settle_engine(engine, seconds=config.engine.self_test_seconds)
        aligner = await _checked_aligner(tokenizer, engine, with_turn_end(engine.info(), tokenizer), config)
        scheduler.start()
        teacher = HostedTeacher(
            name=config.teacher,
            engine=engine,
            tokenizer=tokenizer,
            aligner=aligner,
            scheduler=scheduler,
            limits=config.limits,
            max_queue_tokens=config.scheduler.max_queue_tokens,
            weights_folder=config.engine.weights_folder,
        )
        service = ScoreService(teacher, observers=http.observers if http else ())
        readiness = Readiness(add_services(server, teacher, service), http)
        await server.start()
        if http is not None:
            http.host(service)
        await readiness.set(is_serving=True)
        if isinstance(engine, SupervisedEngine):
            engine.start(on_change=readiness.follow(until=stop))
        _announce("serving", address, config.listen.address_file)
        if http is not None:
            _announce("serving http", http.address, config.http.address_file)
        await stop.wait()
        logger.info("draining seconds=%g", config.listen.drain_seconds)
        await readiness.set(is_serving=False)
        draining = [server.stop(config.listen.drain_seconds)]
        if http is not None:
            draining.append(http.stop(config.listen.drain_seconds))
        await asyncio.gather(*draining)
    finally:
        if aligner is not None:
            await aligner.registry.close()
        await scheduler.stop()
        await asyncio.to_thread(engine.close)


def build_server(config: ServerConfig) -> grpc.aio.Server:
    """An empty server with this configuration's limits."""
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.limits.max_message_bytes),
            ("grpc.max_send_message_length", config.limits.max_message_bytes),
            # Without this two servers would share a port in silence.
            ("grpc.so_reuseport", 0),
            # Clients ping every 20 s to notice a dead peer; the default would call that abuse.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )


def bind(server: grpc.aio.Server, config: ServerConfig) -> str:
    """Binds; returns "host:port" with the port that the kernel gave."""
    wanted = joined(config.listen.host, config.listen.port)
    try:
        port = server.add_insecure_port(wanted)
    except RuntimeError as error:
        raise StartupError(
            f"listen: cannot bind to {wanted} ({error}): is the port in use? Set listen.port to another, or to 0"
        ) from error
    return joined(config.listen.host, port)


def build_engine(config: EngineConfig, tokenizer: TeacherTokenizer | None) -> Engine:
    """The engine that `config.kind` names. Imports its libraries only now."""
    if config.kind == "fake":
        fake = FakeEngine if config.fake_dies_after_groups is None else MortalFakeEngine
        return fake(config, vocabulary_size=tokenizer.vocabulary_size if tokenizer else None)
    if config.kind == "vllm":
        from preceptor_server.engines.vllm.engine import VllmEngine

        return VllmEngine(config)
    from preceptor_server.engines.hf import HfEngine

    return HfEngine(config)


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


def open_http(config: HttpConfig) -> HttpSide | None:
    """The HTTP side, which answers from now on; None where it is off, and then none of its libraries is imported."""
    if config.port is None:
        return None
    from preceptor_server.http.listen import HttpSide

    side = HttpSide(config)
    side.start()
    return side


def add_services(
    server: grpc.aio.Server, teacher: HostedTeacher, service: ScoreService | None = None
) -> health.aio.HealthServicer:
    """TeacherService, health and reflection."""
    add_TeacherServiceServicer_to_server(TeacherServicer(teacher, service), server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return health_servicer


def load_teacher_tokenizer(config: EngineConfig) -> TeacherTokenizer | None:
    """None where the fake engine has none. A model's folder that lacks something is told here, before it is loaded."""
    if config.kind != "fake":
        _check_model(config)
    if config.tokenizer:
        return load_tokenizer(
            config.tokenizer, field="engine.tokenizer", gguf_file=None, trust_remote_code=config.trust_remote_code
        )
    if config.kind == "fake":
        return None
    return load_tokenizer(
        config.model, field="engine.model", gguf_file=config.gguf_file, trust_remote_code=config.trust_remote_code
    )


def _check_model(config: EngineConfig) -> None:
    """Before anything is loaded. vLLM has formats of its own, so that only its folder is looked for."""
    is_hf = config.kind == "hf"
    if not is_hf and Path(config.model).is_file():
        return
    try:
        check_source(
            config.model,
            field="engine.model",
            gguf_file=config.gguf_file,
            gguf_field="engine.gguf_file" if is_hf else "",
            needs=("config", "weights") if is_hf else (),
        )
    except InvalidSourceError as error:
        raise StartupError(str(error)) from error
    except OSError as error:
        raise StartupError(f"engine.model: {config.model} cannot be read: {error}") from error


async def _checked_aligner(
    tokenizer: TeacherTokenizer | None, engine: Engine, info: EngineInfo, config: ServerConfig
) -> Aligner | None:
    """None, with a warning, where the teacher's tokenizer is not one that others can be laid beside."""
    if tokenizer is None:
        return None
    try:
        aligner = await asyncio.to_thread(build_aligner, tokenizer, info, config.limits)
        await check_alignment(engine, aligner)
    except InvalidTokenizerError as error:
        logger.warning("students are scored as they are, and only with the teacher's own tokenizer: %s", error)
        return None
    return aligner


def _announce(what: str, address: str, address_file: Path | None) -> None:
    logger.info("%s address=%s", what, address)
    if address_file is not None:
        # Written beside and renamed, so that a reader never sees half an address.
        unfinished = address_file.with_name(address_file.name + ".part")
        unfinished.write_text(address)
        unfinished.replace(address_file)
