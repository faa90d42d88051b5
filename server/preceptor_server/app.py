"""The composition root: builds the parts, serves until told to stop, replaces teachers when told to, drains."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from preceptor import __version__
from preceptor.settings import InvalidSettingsError, dump_settings

from preceptor_server.alignment.workbench import Workbench
from preceptor_server.callers import Caller, Transport
from preceptor_server.config import ServerConfig, TeacherSettings
from preceptor_server.edges.grpc.server import add_services, bind, build_server
from preceptor_server.edges.grpc.servicer import TeacherServicer
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.identity import Identity
from preceptor_server.edges.readiness import Readiness
from preceptor_server.engines.building import check_engine_class
from preceptor_server.errors import ForbiddenError, QuotaExceededError, ServerError, UnauthenticatedError, reason_of
from preceptor_server.hosting import Hosting
from preceptor_server.observability.observatory import Observatory
from preceptor_server.observability.observer import Observers, Refusal
from preceptor_server.serving import ScoreService, ServedOutcome
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.directory import TenantDirectory
from preceptor_server.tenants.refusals import RefusalLog
from preceptor_server.tenants.reloading import Reloader
from preceptor_server.tenants.tenant import Right
from preceptor_server.weights import WeightUpdates

if TYPE_CHECKING:
    from preceptor_server.edges.http.listen import HttpSide  # imports the web framework

logger = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 1.0
"""After the schedulers have given up: how long their callers have to be told."""

Reload = Callable[[], ServerConfig]
"""Reads the settings anew. Raises InvalidSettingsError."""


async def serve(config: ServerConfig, *, reload: Reload | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight. SIGHUP reads the settings anew and adds, removes
    and replaces teachers. Raises StartupError where it cannot start."""
    logger.info("config %s", json.dumps(dump_settings(config)))
    stop, changed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, changed.set)

    for settings in config.hosted.values():
        check_engine_class(settings.engine)
    directory = TenantDirectory(config.access)
    if any(settings.engine.weights_folder for settings in config.hosted.values()):
        _tell_update_rights(config)
    certificates = ServerCertificates(config.tls) if config.tls.is_on else None
    identity = Identity(directory, objectives=config.objectives)
    observatory = Observatory(config.observe, version=__version__)
    http = open_http(config.http, identity, observatory, certificates)
    observers: Observers[ServedOutcome] = observatory.observers(*([http.recorder] if http else []))
    refusals = Refusals(observers)
    if http is not None:
        http.tell_refusals(refusals)
    server = build_server(
        config.listen, max_message_bytes=config.max_message_bytes, identity=identity, observer=refusals
    )
    # Before the model: a port in use is told in the first second.
    address = bind(server, config.listen, certificates=certificates)
    reloader = Reloader([part for part in (directory, certificates) if part is not None])
    reloader.start()
    observatory.start()
    if observatory.address is not None:
        _announce("observing", observatory.address, config.observe.address_file)
    parts = _Parts(
        config=config, server=server, address=address, http=http, observatory=observatory, observers=observers
    )
    try:
        await _serve(parts, stop, _Changes(changed, reload))
    finally:
        if http is not None:
            await http.stop(0)
        await observatory.stop()
        reloader.stop()
        refusals.log.sweep()
    logger.info("stopped")


class Refusals:
    """Counts calls that were refused before they reached a teacher, and logs some of them, once and not in a loop."""

    def __init__(self, observers: Observers[ServedOutcome]) -> None:
        self.log = RefusalLog()
        self._observers = observers

    def refused(self, error: Exception, *, caller: Caller | None, peer: str, method: str, transport: Transport) -> None:
        """A caller's mistakes in what it asks for are its own to read; who it is, and what it may do, is told here."""
        tenant = caller.tenant.name if caller else ""
        if not (isinstance(error, ServerError) and error.is_outcome):
            self._observers.refused(Refusal(tenant=tenant, transport=transport, method=method, reason=reason_of(error)))
        if isinstance(error, UnauthenticatedError | ForbiddenError | QuotaExceededError):
            self.log.note(peer=tenant or peer, reason=error.reason, detail=f"{method}: {error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What stands before a teacher is loaded."""

    config: ServerConfig
    server: grpc.aio.Server
    address: str
    http: HttpSide | None
    observatory: Observatory
    observers: Observers[ServedOutcome]


def _tell_update_rights(config: ServerConfig) -> None:
    """A folder for weights is of no use where nobody may name one in it."""
    if config.access.file is None and Right.UPDATE_WEIGHTS not in config.access.anonymous_rights:
        logger.warning(
            "engine.weights_folder is set and no caller may update weights: give a tenant the right update_weights "
            "(preceptor-server keys new --rights), or everybody by access.anonymous_rights"
        )


class _Changes:
    """Settings that were changed while the server serves."""

    def __init__(self, changed: asyncio.Event, reload: Reload | None) -> None:
        self._changed = changed
        self._reload = reload

    async def follow(self, config: ServerConfig, hosting: Hosting) -> None:
        """Applies them whenever they are told of; what fails is logged, and what serves goes on."""
        serving = config.hosted
        while self._reload is not None:
            await self._changed.wait()
            self._changed.clear()
            try:
                wanted = self._reload()
                await _apply(wanted.hosted, serving, hosting)
            except InvalidSettingsError as error:
                logger.error("settings not reloaded: %s", error)
            except Exception:  # whatever a change brings, the next one must still be heard
                logger.exception("settings not applied")
            else:
                _tell_others(config, wanted)
                logger.info("settings reloaded teachers=%s", ",".join(sorted(serving)))


async def _apply(wanted: dict[str, TeacherSettings], serving: dict[str, TeacherSettings], hosting: Hosting) -> None:
    """`serving` follows what is hosted: what failed to load is tried again when the settings are read anew."""
    for name, settings in wanted.items():
        if serving.get(name) == settings:
            continue
        try:
            await hosting.add(name, settings)
        except ServerError as error:
            logger.error("teacher not loaded name=%s: %s", name, error)
        except Exception:  # a model's or an engine's own code may raise anything, and others are to be loaded
            logger.exception("teacher not loaded name=%s", name)
        else:
            serving[name] = settings
    for name in serving.keys() - wanted.keys():
        del serving[name]
        await hosting.remove(name)


def _tell_others(config: ServerConfig, wanted: ServerConfig) -> None:
    """`config` is what the server was started with."""
    others = {"teachers", "teacher", "engine", "scheduler", "limits"}
    if config.model_dump(exclude=others) != wanted.model_dump(exclude=others):
        logger.warning("settings other than those of teachers changed: restart the server to apply them")


async def _serve(parts: _Parts, stop: asyncio.Event, changes: _Changes) -> None:
    config, server, http, observatory = parts.config, parts.server, parts.http, parts.observatory
    teachers = Teachers()
    service = ScoreService(teachers, observers=parts.observers, tracing=observatory.tracing)
    servicer = TeacherServicer(service, WeightUpdates())
    readiness = Readiness(add_services(server, servicer), http, observatory.health)
    workbench = Workbench(config.workbench)
    hosting = Hosting(
        teachers=teachers,
        on_health=readiness.set,
        metrics=observatory.metrics,
        workbench=workbench,
        tracing=observatory.tracing,
        observe_batches=lambda observer: parts.observers.batches([observer]),
    )
    following: asyncio.Task[None] | None = None
    try:
        if not await _done_before(stop, _load_all(config, hosting)):
            logger.info("stopped before it served: what was being loaded was given up")
            return
        await server.start()
        if http is not None:
            http.host(service)
        following = asyncio.create_task(changes.follow(config, hosting), name="changes")
        _announce("serving", parts.address, config.listen.address_file)
        if http is not None:
            _announce("serving http", http.address, config.http.address_file)
        await stop.wait()
        following.cancel()  # a teacher that is being loaded serves nobody any more
        logger.info("draining seconds=%g", config.listen.drain_seconds)
        await readiness.drain()
        seconds = config.listen.drain_seconds
        stopping = [server.stop(seconds + _LAST_WORDS_SECONDS)]
        if http is not None:
            stopping.append(http.stop(seconds + _LAST_WORDS_SECONDS))
        await asyncio.gather(hosting.drain(seconds), *stopping)
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await hosting.close()
        workbench.close()


async def _load_all(config: ServerConfig, hosting: Hosting) -> None:
    for name, settings in config.hosted.items():
        await hosting.add(name, settings)


async def _done_before(stop: asyncio.Event, work: Coroutine[None, None, None]) -> bool:
    """Whether it was done; it is cancelled where `stop` comes first. Raises what it raises."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, stopping):
            task.cancel()  # of what is done already this changes nothing
        await asyncio.wait([working, stopping])
    if working.cancelled():
        return False
    working.result()
    return True


def open_http(
    config: HttpConfig, identity: Identity, observatory: Observatory, certificates: ServerCertificates | None
) -> HttpSide | None:
    """The HTTP side, which answers from now on; None where it is off, and then none of its libraries is imported."""
    if config.port is None:
        return None
    from preceptor_server.edges.http.listen import HttpSide

    side = HttpSide(config, identity=identity, observatory=observatory, certificates=certificates)
    side.start()
    return side


def _announce(what: str, address: str, address_file: Path | None) -> None:
    logger.info("%s address=%s", what, address)
    if address_file is not None:
        # Written beside and renamed, so that a reader never sees half an address.
        unfinished = address_file.with_name(address_file.name + ".part")
        unfinished.write_text(address)
        unfinished.replace(address_file)
