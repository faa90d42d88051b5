"""UpdateWeights: finds the weights that are meant, lets the engine load them, and serves them once they are proved.

Knows nothing of how an engine loads weights. One update at a time; one that has begun is carried through, whether or
not its caller still waits, so that no teacher is left half changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from preceptor_server.engines.base import UpdatesWeights
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError, StartupError, WeightUpdateError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import MAX_SHOWN_NAME, check_adapter_name
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.selftest import check_engine

logger = logging.getLogger(__name__)

WEIGHT_UPDATES_OFF = "WEIGHT_UPDATES_OFF"
MAX_ADAPTER_NAME_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdateCall:
    """What a caller asks for; the fields of UpdateWeightsRequest."""

    path: str
    adapter: str
    unload: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """A checked call."""

    adapter: str
    """Empty: the teacher's own weights."""
    folder: Path | None
    """Resolved, and inside the server's folder for weights. None: the adapter is taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsInUse:
    """What serves after an update."""

    revision: str
    """Empty where an adapter was taken away."""
    previous_revision: str
    """Empty where the adapter is new."""
    paused_ms: float


class WeightUpdates:
    """Carries out updates, those of one teacher one after the other."""

    def __init__(self) -> None:
        self._locks: WeakKeyDictionary[Scheduler, asyncio.Lock] = WeakKeyDictionary()
        """By a teacher's scheduler, which lives as long as it does."""
        self._running: set[asyncio.Task[WeightsInUse]] = set()

    async def update(self, call: WeightUpdateCall, teacher: HostedTeacher) -> WeightsInUse:
        """Raises InvalidRequestError (UnknownTeacherError among them), NotYetImplementedError or WeightUpdateError;
        the old weights go on serving then."""
        # In a thread: the folder may lie on a file system that takes its time.
        engine, update = await asyncio.to_thread(check_update, call, teacher)
        # A caller that gives up must not end a change in the middle.
        return await asyncio.shield(self._start(self._apply(engine, update, teacher)))

    def _start(self, update: Coroutine[Any, Any, WeightsInUse]) -> asyncio.Task[WeightsInUse]:  # Any: unused channels
        task = asyncio.get_running_loop().create_task(update, name="weight-update")
        self._running.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[WeightsInUse]) -> None:
        self._running.discard(task)
        # Looked at here too: its caller may have gone.
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("weight update failed error=%s", error)

    async def _apply(self, engine: UpdatesWeights, update: WeightUpdate, teacher: HostedTeacher) -> WeightsInUse:
        async with self._locks.setdefault(teacher.scheduler, asyncio.Lock()):
            previous = _revision_of(update.adapter, teacher)
            paused_ms = 0.0
            if update.adapter:
                await _change_adapter(engine, update, teacher)
            else:
                assert update.folder is not None, "only an adapter can be taken away"
                paused_ms = await _change_weights(engine, update.folder, teacher)
            revision = _revision_of(update.adapter, teacher)
            logger.info(
                "weights updated adapter=%r folder=%s previous_revision=%s revision=%s paused_ms=%.0f",
                update.adapter, update.folder, previous, revision, paused_ms,
            )  # fmt: skip
            return WeightsInUse(revision=revision, previous_revision=previous, paused_ms=paused_ms)


async def _change_adapter(engine: UpdatesWeights, update: WeightUpdate, teacher: HostedTeacher) -> None:
    if update.folder is not None:
        await engine.load_adapter(update.adapter, update.folder)
        return
    # Again, and under the lock: the update before this one may have taken it away.
    check_adapter_name(update.adapter, teacher)
    await engine.unload_adapter(update.adapter)


async def _change_weights(engine: UpdatesWeights, folder: Path, teacher: HostedTeacher) -> float:
    """How long nothing was scored, in milliseconds."""
    async with teacher.scheduler.paused():
        started = time.monotonic()
        restore = await engine.load_weights(folder)
        try:
            await check_engine(teacher.engine)
        except Exception as error:
            if restore is None:
                raise WeightUpdateError(
                    "path",
                    f"the new weights fail the self-test ({error}), and this engine cannot bring the old ones "
                    "back: update again with weights that are right, or start the server anew",
                ) from error
            await restore()
            if isinstance(error, StartupError):
                raise WeightUpdateError("path", f"the new weights fail the self-test: {error}") from error
            raise
        return (time.monotonic() - started) * 1000


def _revision_of(adapter: str, teacher: HostedTeacher) -> str:
    info = teacher.info
    return info.adapters.get(adapter, "") if adapter else info.revision


def check_update(call: WeightUpdateCall, teacher: HostedTeacher) -> tuple[UpdatesWeights, WeightUpdate]:
    """The engine, as one that can do it, and what to do. Raises InvalidRequestError (UnknownTeacherError among them),
    NotYetImplementedError or WeightUpdateError, each with the field's name."""
    engine = teacher.engine
    if not isinstance(engine, UpdatesWeights):
        raise NotYetImplementedError("path", f"the engine {teacher.info.engine!r} cannot take new weights: restart it")
    if teacher.weights_folder is None:
        raise WeightUpdateError(
            "path",
            "this server takes no new weights: start it with engine.weights_folder set to the folder they will lie in",
            reason=WEIGHT_UPDATES_OFF,
        )
    _check_name(call.adapter)
    if not call.unload:
        folder = find_folder(call.path, weights_folder=teacher.weights_folder)
        return engine, WeightUpdate(adapter=call.adapter, folder=folder)
    if not call.adapter:
        raise InvalidRequestError("adapter", "is empty: unload takes an adapter away, and needs its name")
    if call.path:
        raise InvalidRequestError("path", "is for weights to load: leave it out with unload")
    check_adapter_name(call.adapter, teacher)
    return engine, WeightUpdate(adapter=call.adapter, folder=None)


def find_folder(path: str, *, weights_folder: Path) -> Path:
    """The folder that `path` names inside `weights_folder`, every link followed. Raises InvalidRequestError where it
    is missing, and WeightUpdateError where there is no such folder or something of it lies outside."""
    if not path:
        raise InvalidRequestError("path", "is missing: name a folder inside the server's engine.weights_folder")
    shown = repr(path[:MAX_SHOWN_NAME])
    root = weights_folder.resolve()
    try:
        folder = (root / path).resolve()
        # First of all, so that nothing is told of what lies elsewhere.
        if not folder.is_relative_to(root):
            raise WeightUpdateError("path", f"{shown} lies outside the server's engine.weights_folder")
        entries = list(folder.iterdir())
        outside = [entry.name for entry in entries if not entry.resolve().is_relative_to(root)]
    # ValueError: a null byte; RuntimeError: links in a circle.
    except (OSError, ValueError, RuntimeError) as error:
        raise WeightUpdateError("path", f"{shown} is no folder inside the server's engine.weights_folder") from error
    if outside:
        raise WeightUpdateError("path", f"{shown} holds a link that leaves the server's engine.weights_folder")
    return folder


def _check_name(adapter: str) -> None:
    if len(adapter) > MAX_ADAPTER_NAME_LENGTH or not adapter.isprintable():
        raise InvalidRequestError(
            "adapter", f"must be a name of at most {MAX_ADAPTER_NAME_LENGTH} printable characters"
        )
