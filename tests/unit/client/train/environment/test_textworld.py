"""Against a game that a test scripts, and against the real package where it is installed (make .venv/.environments)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import environment_maker
from preceptor_client.train.environment.textworld import INSTRUCTION, TextWorld
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.types import ChatMessage

from tests.unit.client.train.environment.episodes import play

EXAMPLE = Example(index=3, prompt="")
# The package's grammar has escapes that Python warns of.
IGNORED_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning", "ignore::FutureWarning"
)
STATUS = "\n\n\n>                                -= Attic =-0/1"


class ScriptedGame:
    """States of a real game of textworld 1.7.0, cut."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.is_closed = False

    def reset(self) -> Mapping[str, Any]:
        return {
            "feedback": "\n\n  BANNER\n\nYou wake." + STATUS,
            "objective": "Open the trunk.",
            "description": "-= Attic =-\nA trunk is here.\n",
            "score": 0,
            "max_score": 2,
            "admissible_commands": ["open trunk", "look"],
        }

    def step(self, command: str) -> tuple[Mapping[str, Any], float, bool]:
        self.commands.append(command)
        if command == "open trunk":
            return {"feedback": "You open it." + STATUS, "admissible_commands": ["look"], "won": False}, 1, False
        return {"feedback": STATUS, "won": command == "win"}, 2 if command == "win" else 1, command == "win"

    def close(self) -> None:
        self.is_closed = True


class Scripted(TextWorld):
    """Starts the scripted game."""

    game = ScriptedGame()

    def start(self, example: Example) -> ScriptedGame:
        return self.game


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the package, of which a scripted game uses nothing."""
    monkeypatch.setitem(sys.modules, "textworld", sys)


@pytest.mark.usefixtures("stand_in")
def test_student_plays_by_its_last_line() -> None:
    Scripted.game = ScriptedGame()
    texts = ["<think>open trunk?</think>I look.\n open trunk \n", "", "win"]
    opening, (opened, nothing, won) = play(Scripted(), EXAMPLE, texts)
    assert opening == (
        ChatMessage(role="system", content=INSTRUCTION),
        ChatMessage(
            role="user",
            content="Open the trunk.\n\n-= Attic =-\nA trunk is here.\n\nCommands: look, open trunk",
        ),
    )
    assert Scripted.game.commands == ["open trunk", "", "win"]
    assert opened.messages == (ChatMessage(role="user", content="You open it.\n\nCommands: look"),)
    assert nothing.messages == (ChatMessage(role="user", content="Nothing happens."),)
    assert [turn.reward for turn in (opened, nothing, won)] == [0.5, 0.0, 0.5]
    assert [turn.done for turn in (opened, nothing, won)] == [False, False, True]
    assert won.info == {"score": 2.0, "max_score": 2.0, "has_won": True}
    assert Scripted.game.is_closed


def test_missing_package_and_missing_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(
        InvalidPartError, match=r"^environment\.kind='textworld': .*pip install 'preceptor\[environments\]'"
    ):
        environment_maker("textworld", key="environment.kind")
    monkeypatch.setitem(sys.modules, "textworld", sys)
    with pytest.raises(InvalidPartError, match=r"game='/nowhere\.z8': no such file"):
        environment_maker("textworld", {"game": "/nowhere.z8"}, key="environment.kind")
    with pytest.raises(InvalidPartError, match="no folder with"):
        environment_maker("textworld", {"game": str(tmp_path)}, key="environment.kind")


def test_example_picks_its_game_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def start(path: str, *, request_infos: object) -> ScriptedGame:
        started.append(path)
        return ScriptedGame()

    monkeypatch.setitem(sys.modules, "textworld", SimpleNamespace(start=start, EnvInfos=dict))
    for name in ("b.ulx", "a.z8", "a.json"):
        (tmp_path / name).touch()
    for index in range(3):
        play(TextWorld(game=str(tmp_path)), Example(index=index, prompt=""), ["look"])
    assert started == [str(tmp_path / name) for name in ("a.z8", "b.ulx", "a.z8")]


@IGNORED_WARNINGS
def test_real_game_is_won_by_its_walkthrough() -> None:
    pytest.importorskip("textworld", reason="make .venv/.environments installs it", exc_type=ImportError)
    first, environment = (TextWorld(seed=1230, num_rooms=2, num_objects=3, quest_length=2) for _ in range(2))
    walkthrough = first.start(EXAMPLE).reset()["extra.walkthrough"]
    asyncio.run(first.close())
    opening, turns = play(environment, EXAMPLE, list(walkthrough))
    assert "Commands: " in opening[1].content
    assert ">" not in turns[0].messages[0].content
    assert [turn.done for turn in turns] == [False] * (len(turns) - 1) + [True]
    assert sum(turn.reward or 0 for turn in turns) == pytest.approx(1.0)
    assert turns[-1].info["has_won"] is True


@IGNORED_WARNINGS
def test_real_games_do_not_disturb_each_other() -> None:
    """In threads of their own, as episodes are; the package's parser is one for all of them."""
    pytest.importorskip("textworld", reason="make .venv/.environments installs it", exc_type=ImportError)

    def opening(index: int) -> str:
        environment = TextWorld(num_rooms=2, num_objects=3, quest_length=1)
        (_, asked), _ = play(environment, Example(index=index, prompt=""), ["look", "inventory"])
        return asked.content

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(opening, [0, 1, 0, 1]))
    assert together == [opening(0), opening(1)] * 2
    assert together[0] != together[1]
