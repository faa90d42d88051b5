"""UpdateWeights: what it refuses, what it leaves as it was, and that scoring never sees half a change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preceptor_server.engines.base import Restore
from preceptor_server.errors import (
    InvalidRequestError,
    NotYetImplementedError,
    ServerError,
    UnknownTeacherError,
    WeightUpdateError,
)
from preceptor_server.hosted import HostedTeacher
from preceptor_server.types import GroupColumns, ScoredGroup, ScoreGroup
from preceptor_server.weights import WeightUpdateCall, WeightUpdates, find_folder

from tests.engines.fake import FakeEngine
from tests.unit.server.callers import caller_of
from tests.unit.server.groups import group_of
from tests.unit.server.hosting import hosted_teacher
from tests.unit.server.scripted_engine import ScriptedEngine

GROUP = group_of([1, 2], [3, 4])


def add_weights(root: Path, name: str, seed: int) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "seed").write_text(str(seed))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "weights"
    add_weights(root, "step-1", 1)
    add_weights(root, "step-2", 2)
    return root


@pytest.fixture
async def teacher(root: Path) -> AsyncIterator[HostedTeacher]:
    teacher = hosted_teacher(weights_folder=root)
    teacher.scheduler.start()
    yield teacher
    await teacher.scheduler.stop()


def ask(path: str = "", adapter: str = "", unload: bool = False) -> WeightUpdateCall:
    return WeightUpdateCall(path=path, adapter=adapter, unload=unload)


def hosted_with(teacher: HostedTeacher, engine: FakeEngine) -> HostedTeacher:
    """The same teacher, whose updates go to another engine; its scheduler scores with its own still."""
    return replace(teacher, engine=engine)


async def score(teacher: HostedTeacher, group: ScoreGroup = GROUP) -> ScoredGroup:
    return await teacher.scheduler.score(group, caller=caller_of("me"))


async def test_new_weights_answer_from_then_on_and_both_revisions_are_told(teacher: HostedTeacher) -> None:
    updates, before = WeightUpdates(), await score(teacher)
    answer = await updates.update(ask(path="step-1"), teacher)
    assert (answer.previous_revision, answer.revision) == ("fake-300", "fake-300-1")
    assert answer.paused_ms > 0
    assert teacher.info.revision == "fake-300-1"
    after = await score(teacher)
    assert (before.revision, after.revision) == ("fake-300", "fake-300-1")
    fresh = FakeEngine(vocabulary_size=300, max_model_len=64)
    assert teacher.weights_folder is not None
    await fresh.load_weights(teacher.weights_folder / "step-1")
    expected = (await fresh.score([GROUP]))[0][0]
    np.testing.assert_array_equal(after.columns[0].sampled_logprobs_N, expected.sampled_logprobs_N)
    again = await updates.update(ask(path="step-1"), teacher)
    assert (again.previous_revision, again.revision) == ("fake-300-1", "fake-300-1")


async def test_adapters_come_are_replaced_and_go_without_a_pause(teacher: HostedTeacher) -> None:
    updates, plain = WeightUpdates(), await score(teacher)
    loaded = await updates.update(ask(path="step-1", adapter="law"), teacher)
    assert (loaded.previous_revision, loaded.revision, loaded.paused_ms) == ("", "fake-300+1", 0)
    adapted = await score(teacher, replace(GROUP, adapter="law"))
    assert adapted.revision == "fake-300+1"
    assert np.abs(adapted.columns[0].sampled_logprobs_N - plain.columns[0].sampled_logprobs_N).max() > 0.1
    replaced = await updates.update(ask(path="step-2", adapter="law"), teacher)
    assert (replaced.previous_revision, replaced.revision) == ("fake-300+1", "fake-300+2")
    unloaded = await updates.update(ask(adapter="law", unload=True), teacher)
    assert (unloaded.previous_revision, unloaded.revision) == ("fake-300+2", "")
    assert teacher.info.adapters == {}
    assert teacher.info.revision == "fake-300"


@pytest.mark.parametrize(
    ("fields", "error", "field", "says"),
    [
        ({}, InvalidRequestError, "path", "is missing"),
        ({"path": "step-9"}, WeightUpdateError, "path", "'step-9' is no folder inside"),
        ({"path": "step-1/seed"}, WeightUpdateError, "path", "is no folder inside"),
        ({"path": "../outside"}, WeightUpdateError, "path", "'../outside' lies outside"),
        ({"path": "step-1/../../outside"}, WeightUpdateError, "path", "lies outside"),
        ({"path": "/etc"}, WeightUpdateError, "path", "'/etc' lies outside"),
        ({"path": "a\0b"}, WeightUpdateError, "path", "is no folder inside"),
        ({"path": "x" * 5000}, WeightUpdateError, "path", "x' is no folder inside"),
        ({"path": "x/" * 3000}, WeightUpdateError, "path", "is no folder inside"),
        ({"path": "empty"}, WeightUpdateError, "path", "holds no file 'seed'"),
        ({"path": "step-1", "adapter": "a" * 129}, InvalidRequestError, "adapter", "at most 128 printable"),
        ({"path": "step-1", "adapter": "a\nb"}, InvalidRequestError, "adapter", "at most 128 printable"),
        ({"unload": True}, InvalidRequestError, "adapter", "is empty: unload"),
        ({"unload": True, "adapter": "law"}, UnknownTeacherError, "adapter", "'law' is not loaded"),
        ({"unload": True, "adapter": "law", "path": "step-1"}, InvalidRequestError, "path", "leave it out with unload"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_field_and_changes_nothing(
    teacher: HostedTeacher, root: Path, fields: dict[str, Any], error: type[ServerError], field: str, says: str
) -> None:
    (root / "empty").mkdir()
    add_weights(root.parent, "outside", 9)
    with pytest.raises(error, match=says) as caught:
        await WeightUpdates().update(ask(**fields), teacher)
    assert getattr(caught.value, "field", None) == field
    assert str(root) not in str(caught.value)
    assert (teacher.info.revision, teacher.info.adapters) == ("fake-300", {})
    assert (await score(teacher)).revision == "fake-300"


def link_the_folder(root: Path, outside: Path) -> None:
    (root / "linked").symlink_to(outside)


def link_a_file(root: Path, outside: Path) -> None:
    (root / "linked").mkdir()
    (root / "linked" / "seed").symlink_to(outside / "seed")


def link_in_a_circle(root: Path, outside: Path) -> None:
    (root / "linked").symlink_to(root / "linked")


@pytest.mark.parametrize("link", [link_the_folder, link_a_file, link_in_a_circle])
def test_links_that_leave_the_folder_are_refused(root: Path, link: Callable[[Path, Path], None]) -> None:
    add_weights(root.parent, "outside", 9)
    link(root, root.parent / "outside")
    with pytest.raises(WeightUpdateError, match=r"lies outside|holds a link that leaves|is no folder"):
        find_folder("linked", weights_folder=root)


def test_links_that_stay_inside_are_followed(root: Path, tmp_path: Path) -> None:
    (root / "latest").symlink_to(root / "step-2")
    assert find_folder("latest", weights_folder=root) == (root / "step-2").resolve()
    # As hub caches lay files out; and the folder itself may be reached by a link.
    (root / "snapshot").mkdir()
    (root / "snapshot" / "seed").symlink_to(root / "step-1" / "seed")
    (tmp_path / "elsewhere").symlink_to(root)
    assert find_folder("snapshot", weights_folder=tmp_path / "elsewhere") == (root / "snapshot").resolve()


async def test_updates_are_off_unless_a_folder_is_set() -> None:
    with pytest.raises(WeightUpdateError, match=r"engine\.weights_folder") as caught:
        await WeightUpdates().update(ask(path="step-1"), hosted_teacher())
    assert caught.value.reason == "WEIGHT_UPDATES_OFF"


async def test_engine_that_cannot_is_not_asked(root: Path) -> None:
    unable = replace(hosted_teacher(weights_folder=root), engine=ScriptedEngine())
    assert not unable.takes_weights
    with pytest.raises(NotYetImplementedError, match="'scripted' cannot take new weights"):
        await WeightUpdates().update(ask(path="step-1"), unable)


class BrokenWeights(FakeEngine):
    """Seed 2 scores other than a plain forward does; `error` is what then comes of it instead, if it is set."""

    has_way_back = True
    error: Exception | None = None

    async def load_weights(self, folder: Path) -> Restore | None:  # type: ignore[override]  # wider, as in the Protocol
        restore = await super().load_weights(folder)
        return restore if self.has_way_back else None

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        answers = await super().score(batch)
        if self._seed != 2:
            return answers
        if self.error:
            raise self.error
        return [
            tuple(replace(c, sampled_logprobs_N=c.sampled_logprobs_N * np.float32(np.nan)) for c in answer)
            for answer in answers
        ]


def broken_engine() -> BrokenWeights:
    return BrokenWeights(vocabulary_size=300, max_model_len=64)


async def test_weights_that_fail_the_self_test_make_way_for_the_old_ones(teacher: HostedTeacher) -> None:
    engine = broken_engine()
    updates, hosted = WeightUpdates(), hosted_with(teacher, engine)
    await updates.update(ask(path="step-1"), hosted)
    with pytest.raises(WeightUpdateError, match=r"new weights fail the self-test: .*off by nan") as caught:
        await updates.update(ask(path="step-2"), hosted)
    assert caught.value.field == "path"
    assert engine.info().revision == "fake-300-1"


async def test_whatever_the_self_test_raises_the_old_weights_come_back(teacher: HostedTeacher) -> None:
    engine = broken_engine()
    engine.error = MemoryError("out of it")
    with pytest.raises(MemoryError):
        await WeightUpdates().update(ask(path="step-2"), hosted_with(teacher, engine))
    assert engine.info().revision == "fake-300"


async def test_engine_without_a_way_back_says_so(teacher: HostedTeacher) -> None:
    engine = broken_engine()
    engine.has_way_back = False
    with pytest.raises(WeightUpdateError, match="cannot bring the old ones back: update again"):
        await WeightUpdates().update(ask(path="step-2"), hosted_with(teacher, engine))


class SlowWeights(FakeEngine):
    """Loading takes until `gate` opens; notes how many loads were going on at once."""

    def __init__(self) -> None:
        super().__init__(vocabulary_size=300, max_model_len=64)
        self.gate, self.begun = asyncio.Event(), asyncio.Event()
        self.num_loading = self.most_loading = 0

    async def load_weights(self, folder: Path) -> Restore:
        self.num_loading += 1
        self.most_loading = max(self.most_loading, self.num_loading)
        self.begun.set()
        await self.gate.wait()
        self.num_loading -= 1
        return await super().load_weights(folder)


async def test_what_waits_during_an_update_is_scored_after_it(teacher: HostedTeacher) -> None:
    engine = SlowWeights()
    update = asyncio.create_task(WeightUpdates().update(ask(path="step-1"), hosted_with(teacher, engine)))
    await engine.begun.wait()
    waiting = asyncio.create_task(score(teacher))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    engine.gate.set()
    assert (await update).paused_ms >= 200
    await waiting


async def test_updates_wait_for_each_other_and_each_tells_the_one_before(teacher: HostedTeacher) -> None:
    engine = SlowWeights()
    updates, hosted = WeightUpdates(), hosted_with(teacher, engine)
    first = asyncio.create_task(updates.update(ask(path="step-1"), hosted))
    await engine.begun.wait()
    second = asyncio.create_task(updates.update(ask(path="step-2"), hosted))
    await asyncio.sleep(0.05)
    engine.gate.set()
    answers = await asyncio.gather(first, second)
    assert engine.most_loading == 1
    assert [(a.previous_revision, a.revision) for a in answers] == [
        ("fake-300", "fake-300-1"),
        ("fake-300-1", "fake-300-2"),
    ]


async def test_update_whose_caller_has_gone_is_carried_through(teacher: HostedTeacher) -> None:
    engine = SlowWeights()
    updates, hosted = WeightUpdates(), hosted_with(teacher, engine)
    update = asyncio.create_task(updates.update(ask(path="step-1"), hosted))
    await engine.begun.wait()
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    waiting = asyncio.create_task(score(teacher))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done, "scoring went on in the middle of the change"
    engine.gate.set()
    await waiting
    assert engine.info().revision == "fake-300-1"


async def test_a_folder_is_looked_into_in_a_thread(teacher: HostedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie on a file system that takes its time."""
    threads: list[int] = []

    def find(path: str, *, weights_folder: Path) -> Path:
        threads.append(threading.get_ident())
        return find_folder(path, weights_folder=weights_folder)

    monkeypatch.setattr("preceptor_server.weights.find_folder", find)
    await WeightUpdates().update(ask(path="step-1"), teacher)
    assert threads
    assert threading.get_ident() not in threads
