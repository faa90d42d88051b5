"""What docs/client.md shows runs, and what it says of options, bounds and modes is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from preceptor_client import GroupScores, TeacherClient
from preceptor_client.breaker import FAILURES_TO_OPEN
from preceptor_client.cached_scoring import INFO_SECONDS
from preceptor_client.commands.access_settings import AccessSettings
from preceptor_client.connection import DEFAULT_MAX_BYTES_IN_FLIGHT, DEFAULT_MAX_CONCURRENT_CALLS
from preceptor_client.hedging import HEDGED_SHARE
from preceptor_client.score_cache import CacheMode

from tests.unit.client.scripted_teacher import ScriptedTeacher
from tests.unit.client.secure_serving import Authority
from tests.unit.client.test_blocking import served_elsewhere

PAGE = (Path(__file__).parents[3] / "docs/client.md").read_text(encoding="utf-8")
KEYS, SEVERAL, CACHE, TRANSPORT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(code: str) -> dict[str, Any]:  # Any: what the page defines
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_client_with_keys_and_certificates_opens(folder: Path) -> None:
    authority = Authority(folder)
    authority.client_pair()
    (folder / "key").write_text("prk_1_secret\n")
    assert isinstance(run(KEYS)["client"], TeacherClient)


def test_the_client_of_several_servers_opens() -> None:
    assert isinstance(run(SEVERAL)["client"], TeacherClient)


def test_the_cache_answers_the_second_time(folder: Path) -> None:
    teacher = ScriptedTeacher()
    with served_elsewhere(teacher) as address:
        names = run(CACHE.replace("127.0.0.1:50051", address))
    assert isinstance(names["again"], GroupScores)
    assert names["again"].prompt_ids.tolist() == names["first"].prompt_ids.tolist()
    assert len(teacher.requests) == 1
    assert (folder / "scores.sqlite").is_file()


def test_the_transport_answers() -> None:
    assert run(TRANSPORT)["info"].teachers[0].name == "tutor"


def test_the_page_names_arguments_options_bounds_and_modes_as_they_are() -> None:
    parameters = set(inspect.signature(TeacherClient.__init__).parameters)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if row.startswith("| `")]
    named = [(row[0].strip("`"), re.findall(r"`--(.*?)`", row[1])) for row in rows if len(row) == 4]
    assert {argument for argument, _ in named} <= parameters
    options = sorted(option.replace("-", "_") for _, several in named for option in several)
    assert options == sorted(AccessSettings.model_fields)
    assert [row[0].strip('`"') for row in rows if row[0].startswith('`"')] == list(get_args(CacheMode))
    assert f"scores ({DEFAULT_MAX_CONCURRENT_CALLS}) " in PAGE
    assert f"({DEFAULT_MAX_BYTES_IN_FLIGHT >> 20} MiB)" in PAGE
    assert f"every {INFO_SECONDS:g} seconds" in PAGE
    assert (FAILURES_TO_OPEN, HEDGED_SHARE) == (5, 0.1)
