"""The composition root: builds the parts, checks the engine, serves until told to stop, drains."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from preceptor.settings import dump_settings
from preceptor.v1 import teacher_pb2
from preceptor.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server

from preceptor_server.alignment.aligner import Aligner, build_aligner
from preceptor_server.alignment.selftest import check_alignment
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer, load_tokenizer
from preceptor_server.config import EngineConfig, ServerConfig
from preceptor_server.engines.base import Engine
from preceptor_server.engines.fake import FakeEngine
from preceptor_server.engines.mortal_fake import MortalFakeEngine
from preceptor_server.errors import InvalidTokenizerError, StartupError
from preceptor_server.hosted import HostedTeacher, with_turn_end
from preceptor_server.scheduler import Scheduler
from preceptor_server.selftest import check_engine
from preceptor_server.servicer import TeacherServicer
from preceptor_server.supervision import OnChange, SupervisedEngine, supervise
from preceptor_server.types import EngineInfo

logger = logging.getLogger(__name__)

SERVICE_NAME = teacher_pb2.DESCRIPTOR.services_by_name["TeacherService"].full_name


async def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight. Raises StartupError where it cannot start."""
    logger.info("config %s", json.dumps(dump_settings(config)))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    server = build_server(config)
    address = bind(server, config)  # before the model: a port in use is told in the first second
    tokenizer = _load_tokenizer(config.engine)
    engine = supervise(build_engine(config.engine, tokenizer))
    await asyncio.to_thread(engine.load)
    scheduler = Scheduler(engine, config.scheduler)
    aligner: Aligner | None = None
    try:
        check_vocabularies(engine, tokenizer)
        await check_engine(engine)
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
        health_servicer = add_services(server, teacher)
        await server.start()
        await set_health(health_servicer, is_serving=True)
        if isinstance(engine, SupervisedEngine):
            engine.start(on_change=_health_while_running(health_servicer, stop))
        _announce(address, config.listen.address_file)
        await stop.wait()
        logger.info("draining seconds=%g", config.listen.drain_seconds)
        await set_health(health_servicer, is_serving=False)
        await server.stop(config.listen.drain_seconds)
    finally:
        if aligner is not None:
            await aligner.registry.close()
        await scheduler.stop()
        await asyncio.to_thread(engine.close)
    logger.info("stopped")


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
    host = f"[{config.listen.host}]" if ":" in config.listen.host else config.listen.host  # IPv6
    wanted = f"{host}:{config.listen.port}"
    try:
        port = server.add_insecure_port(wanted)
    except RuntimeError as error:
        raise StartupError(
            f"listen: cannot bind to {wanted} ({error}): is the port in use? Set listen.port to another, or to 0"
        ) from error
    return f"{host}:{port}"


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
    """A tokenizer may know fewer tokens than the model has logits (padding), never more."""
    if tokenizer is not None and tokenizer.vocabulary_size > engine.info().vocabulary_size:
        raise StartupError(
            f"engine.tokenizer has {tokenizer.vocabulary_size} tokens and the model only "
            f"{engine.info().vocabulary_size} logits: they do not belong together"
        )


def add_services(server: grpc.aio.Server, teacher: HostedTeacher) -> health.aio.HealthServicer:
    """TeacherService, health and reflection."""
    add_TeacherServiceServicer_to_server(TeacherServicer(teacher), server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return health_servicer


async def set_health(servicer: health.aio.HealthServicer, *, is_serving: bool) -> None:
    """Sets the health of the service and of the server as a whole."""
    status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE_NAME):
        await servicer.set(name, status)


def _health_while_running(servicer: health.aio.HealthServicer, stop: asyncio.Event) -> OnChange:
    """Health follows the engine, until the server drains: then it stays as it is."""

    async def follow(is_alive: bool) -> None:
        if not stop.is_set():
            await set_health(servicer, is_serving=is_alive)

    return follow


def _load_tokenizer(config: EngineConfig) -> TeacherTokenizer | None:
    name = config.tokenizer or (config.model if config.kind != "fake" else None)
    if name is None:
        return None
    gguf_file = config.gguf_file if config.tokenizer is None else None
    return load_tokenizer(name, gguf_file=gguf_file, trust_remote_code=config.trust_remote_code)


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


def _announce(address: str, address_file: Path | None) -> None:
    logger.info("serving address=%s", address)
    if address_file is not None:
        # Written beside and renamed, so that a reader never sees half an address.
        unfinished = address_file.with_name(address_file.name + ".part")
        unfinished.write_text(address)
        unfinished.replace(address_file)
