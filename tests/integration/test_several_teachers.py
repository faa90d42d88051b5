"""Two teachers in one server: each answers for itself, and one is replaced while the other is asked."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from preceptor_client import BlockingTeacherClient, TeacherClient
from preceptor_client.errors import InvalidRequestError
from preceptor_client.types import GroupScores, TeacherIds
from preceptor_server.config import ServerConfig

from tests.integration.servers import RunningServer, running_server

DOCUMENT = Path(__file__).parents[2] / "docs" / "teachers.md"
SECONDS = 120


def settings(**models: Path) -> str:
    return "".join(f'[teachers.{name}.engine]\nmodel = "{folder}"\n\n' for name, folder in models.items())


def revision_of(address: str, teacher: str) -> str:
    with BlockingTeacherClient(address) as client:
        [found] = [one for one in client.info().teachers if one.name == teacher]
        return found.revision


def wait_for_log(server: RunningServer, text: str, *, times: int = 1) -> None:
    deadline = time.monotonic() + SECONDS
    while server.log.read_text().count(text) < times:
        assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{server.log.read_text()}"
        time.sleep(0.05)


def score(client: BlockingTeacherClient, teacher: str) -> GroupScores:
    return client.score(TeacherIds((5, 6)), [[7, 8, 9]], top_k=4, teacher=teacher)


def test_each_answers_for_itself_and_one_is_replaced_while_the_other_is_asked(
    tiny_folder: Path, other_tiny_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "teachers.toml"
    file.write_text(settings(first=tiny_folder, second=other_tiny_folder))
    with (
        running_server(tmp_path / "server", "@", str(file)) as server,
        BlockingTeacherClient(server.address) as client,
    ):
        assert [teacher.name for teacher in client.info().teachers] == ["first", "second"]
        with pytest.raises(InvalidRequestError, match="is empty, and there are several: 'first', 'second'"):
            score(client, "")
        first, second = score(client, "first"), score(client, "second")
        assert (first.teacher, second.teacher) == ("first", "second")
        difference = first.responses[0].sampled_logprobs_N - second.responses[0].sampled_logprobs_N
        assert np.abs(difference).max() > 1e-3

        file.write_text(settings(first=tiny_folder, second=tiny_folder))
        answers = asyncio.run(_ask_while(server, revision_before=second.revision))
        assert len(answers) > 1
        for answer in answers:
            np.testing.assert_array_equal(answer.responses[0].support_ids_NK, first.responses[0].support_ids_NK)
        replaced = score(client, "second")
        assert replaced.revision == first.revision
        np.testing.assert_allclose(
            replaced.responses[0].sampled_logprobs_N, first.responses[0].sampled_logprobs_N, atol=1e-5
        )  # the same weights, in batches of other sizes

        file.write_text(settings(first=tiny_folder))
        server.process.send_signal(signal.SIGHUP)
        wait_for_log(server, "settings reloaded", times=2)
        assert [teacher.name for teacher in client.info().teachers] == ["first"]
        assert score(client, "").teacher == "first"


async def _ask_while(server: RunningServer, *, revision_before: str) -> list[GroupScores]:
    """The first teacher's answers, one after the other, until the second was replaced."""
    os.kill(server.process.pid, signal.SIGHUP)
    answers: list[GroupScores] = []
    deadline = time.monotonic() + SECONDS
    async with TeacherClient(server.address) as client:
        while time.monotonic() < deadline:
            answers.append(await client.score(TeacherIds((5, 6)), [[7, 8, 9]], top_k=4, teacher="first"))
            [second] = [one for one in (await client.info()).teachers if one.name == "second"]
            if second.revision != revision_before:
                return answers
    raise AssertionError("the second teacher was never replaced")


def test_settings_that_cannot_be_used_change_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "teachers.toml"
    file.write_text(settings(first=tiny_folder))
    with (
        running_server(tmp_path / "server", "@", str(file)) as server,
        BlockingTeacherClient(server.address) as client,
    ):
        before = score(client, "first")
        file.write_text(settings(first=tiny_folder) + "[teachers.second]\n")
        server.process.send_signal(signal.SIGHUP)
        wait_for_log(server, "settings not reloaded")
        file.write_text(settings(first=tiny_folder, second=tmp_path / "nowhere"))
        server.process.send_signal(signal.SIGHUP)
        wait_for_log(server, "teacher not loaded name=second")
        assert score(client, "first").revision == before.revision
        assert [teacher.name for teacher in client.info().teachers] == ["first"]
        assert server.stop() == 0


def test_the_documents_settings_load() -> None:
    [block] = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.S)
    config = ServerConfig.model_validate(tomllib.loads(block))
    assert config.hosted["large"].limits.max_group_tokens == 65536
    assert config.hosted["small"].scheduler.max_batch_tokens == 8192
    assert config.hosted["small"].limits.max_group_tokens == 262_144
