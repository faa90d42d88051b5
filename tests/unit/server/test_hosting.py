"""Teachers are loaded, replaced and closed while others serve; what fails, or is stopped half way, leaves nothing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor.settings import InvalidSettingsError
from preceptor_server.alignment.workbench import Workbench
from preceptor_server.app import _Changes, serve
from preceptor_server.config import ListenConfig, ServerConfig, TeacherSettings
from preceptor_server.engines.config import OwnEngineConfig
from preceptor_server.errors import DrainingError, StartupError
from preceptor_server.hosting import Hosting
from preceptor_server.observability.health import Health
from preceptor_server.observability.metrics import Metrics
from preceptor_server.settling import settle_engine
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Tenant

from tests.engines.fake import FakeEngine
from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of
from tests.unit.server.scheduling.running import let_things_happen

ANYONE = Tenant(name="anyone")
SECONDS = 10


class WatchedEngine(FakeEngine):
    """Its loads and closes can be counted and held back; with `failure` "startup" it cannot be loaded."""

    loaded: list[str]
    closed: list[str]
    may_load: threading.Event
    is_loading: threading.Event
    load_seconds = 0.0

    def __init__(self, label: str = "", failure: str = "") -> None:
        super().__init__()
        self._label, self._failure = label, failure

    def load(self) -> None:
        self.is_loading.set()
        assert self.may_load.wait(SECONDS)
        time.sleep(self.load_seconds)
        if self._failure == "startup":
            raise StartupError("no such model")
        self.loaded.append(self._label)

    def close(self) -> None:
        self.closed.append(self._label)


@pytest.fixture(autouse=True)
def _watched() -> None:
    WatchedEngine.loaded, WatchedEngine.closed, WatchedEngine.load_seconds = [], [], 0.0
    WatchedEngine.may_load, WatchedEngine.is_loading = threading.Event(), threading.Event()
    WatchedEngine.may_load.set()


def settings_of(label: str, **options: Any) -> TeacherSettings:  # Any: the constructor's
    kind = f"{__name__}:{WatchedEngine.__name__}"
    return TeacherSettings(engine=OwnEngineConfig(kind=kind, options={"label": label, **options}))


@asynccontextmanager
async def hosting_of(**teachers: TeacherSettings) -> AsyncIterator[Hosting]:
    async def on_health(name: str, is_alive: bool) -> None:
        del name, is_alive

    workbench = Workbench()
    metrics = Metrics(health=Health(), version="1")
    hosting = Hosting(teachers=Teachers(), on_health=on_health, metrics=metrics, workbench=workbench)
    try:
        for name, settings in teachers.items():
            await hosting.add(name, settings)
        yield hosting
    finally:
        await asyncio.wait_for(hosting.close(), SECONDS)
        workbench.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():
            await asyncio.sleep(0.001)


async def test_a_call_that_goes_on_with_the_old_teacher_holds_up_no_other_change() -> None:
    async with hosting_of(a=settings_of("old")) as hosting:
        with hosting.teachers.use("a", tenant=ANYONE):
            await asyncio.wait_for(hosting.add("a", settings_of("new")), SECONDS)
            await asyncio.wait_for(hosting.add("b", settings_of("b")), SECONDS)
            await asyncio.wait_for(hosting.remove("b"), SECONDS)
            await until(lambda: WatchedEngine.closed == ["b"])
        await until(lambda: WatchedEngine.closed == ["b", "old"])


async def test_of_one_name_no_third_is_loaded_beside_two() -> None:
    async with hosting_of(a=settings_of("first")) as hosting:
        with hosting.teachers.use("a", tenant=ANYONE):
            await hosting.add("a", settings_of("second"))
            third = asyncio.create_task(hosting.add("a", settings_of("third")))
            await asyncio.sleep(0.05)
            assert WatchedEngine.loaded == ["first", "second"]
        await asyncio.wait_for(third, SECONDS)
    assert WatchedEngine.closed[0] == "first"
    assert sorted(WatchedEngine.closed) == ["first", "second", "third"]


async def test_calls_of_a_teacher_that_was_replaced_are_drained_and_it_is_closed() -> None:
    async with hosting_of(a=settings_of("old")) as hosting:
        with hosting.teachers.use("a", tenant=ANYONE) as old:
            await hosting.add("a", settings_of("new"))
            async with old.scheduler.paused():
                waiting = asyncio.create_task(old.scheduler.score(group_of([1], [2]), caller=caller_of("a")))
                await let_things_happen()
                await asyncio.wait_for(hosting.drain(0.01), SECONDS)
                with pytest.raises(DrainingError):
                    await waiting
            await asyncio.wait_for(hosting.close(), SECONDS)  # although the call goes on
    assert sorted(WatchedEngine.closed) == ["new", "old"]


async def test_a_teacher_whose_load_is_given_up_is_closed_once_it_is_loaded() -> None:
    WatchedEngine.may_load.clear()
    async with hosting_of() as hosting:
        adding = asyncio.create_task(hosting.add("a", settings_of("a")))
        await until(WatchedEngine.is_loading.is_set)
        adding.cancel()
        await let_things_happen()
        WatchedEngine.may_load.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(adding, SECONDS)
        assert hosting.teachers.names == ()
        assert (WatchedEngine.loaded, WatchedEngine.closed) == (["a"], ["a"])


class Files:
    """What the settings say when they are read; an exception is raised."""

    def __init__(self) -> None:
        self.says: ServerConfig | Exception = InvalidSettingsError("none")
        self.num_read = 0

    def read(self) -> ServerConfig:
        self.num_read += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def config_of(**teachers: TeacherSettings) -> ServerConfig:
    return ServerConfig(teachers=teachers)


@asynccontextmanager
async def followed(hosting: Hosting, config: ServerConfig) -> AsyncIterator[Callable[[ServerConfig | Exception], Any]]:
    """A function that changes the settings, and returns once they are applied."""
    changed, files = asyncio.Event(), Files()
    following = asyncio.create_task(_Changes(changed, files.read).follow(config, hosting))

    async def change(says: ServerConfig | Exception) -> None:
        files.says, before = says, files.num_read
        changed.set()
        await until(lambda: files.num_read > before)
        # Read twice: by then the first is applied.
        changed.set()
        await until(lambda: files.num_read > before + 1)
        await let_things_happen()

    try:
        yield change
    finally:
        following.cancel()
        await asyncio.wait([following])
        assert following.cancelled(), "it ends when it is told to, and not before"


async def test_whatever_reading_the_settings_raises_the_next_change_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    before = config_of(a=settings_of("a"))
    async with hosting_of(**before.hosted) as hosting, followed(hosting, before) as change:
        await change(PermissionError("not yours"))
        assert "not yours" in caplog.text
        await change(config_of(a=settings_of("a"), b=settings_of("b")))
        assert hosting.teachers.names == ("a", "b")


async def test_one_that_fails_to_load_by_whatever_holds_up_none_of_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def settle(engine: WatchedEngine, *, seconds: float) -> None:
        if engine._failure == "later":
            raise RuntimeError("no such device")
        await settle_engine(engine, seconds=seconds)

    before = config_of(a=settings_of("a"), gone=settings_of("gone"))
    after = config_of(
        a=settings_of("a"),
        b=settings_of("b", failure="startup"),
        c=settings_of("c", failure="later"),
        d=settings_of("d"),
    )
    async with hosting_of(**before.hosted) as hosting, followed(hosting, before) as change:
        monkeypatch.setattr("preceptor_server.hosting.settle_engine", settle)
        with caplog.at_level(logging.INFO):
            await change(after)
            assert ",".join(hosting.teachers.names) == "a,d"
            assert "no such model" in caplog.text
            assert "no such device" in caplog.text
            monkeypatch.setattr("preceptor_server.hosting.settle_engine", settle_engine)
            await change(after)  # nothing but the machine has changed
        assert ",".join(hosting.teachers.names) == "a,c,d"
        assert WatchedEngine.loaded.count("a") == WatchedEngine.loaded.count("d") == 1
        assert "teachers=a,c,d" in caplog.text


async def test_one_whose_change_fails_serves_on_and_is_not_loaded_again_when_the_change_is_taken_back() -> None:
    before = config_of(a=settings_of("a"))
    async with hosting_of(**before.hosted) as hosting, followed(hosting, before) as change:
        serving = hosting.teachers.get("a")
        await change(config_of(a=settings_of("worse", failure="startup")))
        await change(before)
        assert hosting.teachers.get("a") is serving
        assert WatchedEngine.loaded == ["a"]


async def test_sigterm_while_it_loads_ends_the_server_after_that_load(caplog: pytest.LogCaptureFixture) -> None:
    WatchedEngine.may_load.clear()
    config = ServerConfig(listen=ListenConfig(port=0), teachers={"a": settings_of("a"), "b": settings_of("b")})
    with caplog.at_level(logging.INFO):
        serving = asyncio.create_task(serve(config))
        await until(WatchedEngine.is_loading.is_set)
        os.kill(os.getpid(), signal.SIGTERM)
        await let_things_happen()
        WatchedEngine.may_load.set()
        await asyncio.wait_for(serving, SECONDS)
    assert (WatchedEngine.loaded, WatchedEngine.closed) == (["a"], ["a"])
    assert "serving address" not in caplog.text


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "give up", "remove", "begin", "begin", "end", "wait"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["", "", "", "startup"]),
    ),
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(actions=ACTIONS, drains=st.booleans())
def test_whatever_is_loaded_is_closed_once_and_never_while_a_call_uses_it(
    actions: list[tuple[str, str, str]], drains: bool
) -> None:
    WatchedEngine.loaded, WatchedEngine.closed, WatchedEngine.load_seconds = [], [], 0.003
    asyncio.run(asyncio.wait_for(_host(actions, drains=drains), 60))
    WatchedEngine.load_seconds = 0.0
    assert sorted(WatchedEngine.closed) == sorted(WatchedEngine.loaded)


async def _host(actions: list[tuple[str, str, str]], *, drains: bool) -> None:
    calls: list[tuple[asyncio.Event, asyncio.Task[None]]] = []
    adding: dict[str, asyncio.Task[None]] = {}

    async def use(hosting: Hosting, name: str, end: asyncio.Event) -> None:
        with hosting.teachers.use(name, tenant=ANYONE) as teacher:
            assert isinstance(teacher.engine, WatchedEngine)
            await end.wait()
            assert teacher.engine._label not in WatchedEngine.closed
            await teacher.scheduler.score(group_of([1], [2]), caller=caller_of("a"))

    async with hosting_of() as hosting:
        for number, (action, name, failure) in enumerate(actions):
            if action in ("add", "remove") and name in adding:
                if hosting._closing:
                    continue  # one of that name may be waiting for a call that ends later
                await asyncio.wait([adding.pop(name)])
            if action == "add":
                adding[name] = asyncio.create_task(hosting.add(name, settings_of(f"{number}", failure=failure)))
            elif action == "give up" and name in adding:
                await asyncio.sleep(number % 4 / 1000)
                adding[name].cancel()
                await asyncio.wait([adding.pop(name)])
            elif action == "remove":
                await hosting.remove(name)
            elif action == "begin" and name in hosting.teachers.names:
                end = asyncio.Event()
                calls.append((end, asyncio.create_task(use(hosting, name, end))))
            elif action == "end" and calls:
                end, call = calls.pop(0)
                end.set()
                await call
            elif action == "wait":
                await asyncio.sleep(0.02)
            await asyncio.sleep(0)
        for task in adding.values():
            task.cancel()
        await asyncio.gather(*adding.values(), return_exceptions=True)
        if drains:
            await hosting.drain(0.01)
        else:
            for end, _ in calls:
                end.set()
            await asyncio.gather(*(call for _, call in calls))
    for _, call in calls:
        if drains:
            call.cancel()
            await asyncio.wait([call])
    assert not hosting._closing
    assert not hosting.teachers.leaving
