"""Text adventures of the package textworld: the student writes commands, the game answers and scores."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Messages, Turn, without_thoughts
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.types import ChatMessage

INSTRUCTION = "You play a text adventure. Answer with one command, and nothing else."
_LOCK = threading.Lock()
"""The package parses rules with one parser per process: two games at once, generated or played, break each other."""
_Count = Annotated[int, Field(ge=1)]


class Game(Protocol):
    """What is used of a game of textworld."""

    def reset(self) -> Mapping[str, Any]:
        """The first state: "feedback", "objective", "description", "score", "max_score", "admissible_commands"."""
        ...

    def step(self, command: str) -> tuple[Mapping[str, Any], float, bool]:
        """The next state, its score, and whether the game has ended."""
        ...

    def close(self) -> None: ...


class TextWorld:
    """An `Environment`: plays a game file, or one that is generated for the example. A turn's reward is what it adds to
    the score, as a share of the largest score. The student's command is the last line that it wrote."""

    def __init__(
        self,
        *,
        game: str = "",
        seed: int = 0,
        num_rooms: _Count = 3,
        num_objects: _Count = 5,
        quest_length: _Count = 3,
        shows_commands: bool = True,
        instruction: str = INSTRUCTION,
    ) -> None:
        """`game` is a file (.z8, .ulx, .json), or a folder of .z8 and .ulx files, of which the example's index picks
        one; without it a game is generated, of the example's index and `seed`. `shows_commands` tells the student which
        commands the game would take."""
        _textworld()
        self._files = _game_files(game) if game else []
        self._seed = seed
        self._size = {"nb_rooms": num_rooms, "nb_objects": num_objects, "quest_length": quest_length}
        self._shows_commands = shows_commands
        self._instruction = instruction
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._game: Game | None = None
        self._score = 0.0
        self._max_score = 1.0

    async def reset(self, example: Example) -> Messages:
        """As `Environment.reset`."""
        with _LOCK:
            self._game = self.start(example)
            state = self._game.reset()
        self._score = float(state.get("score") or 0)
        self._max_score = float(state.get("max_score") or 1)
        opening = "\n\n".join(
            text for name in ("objective", "description") if (text := str(state.get(name) or "").strip())
        )
        told = self._told(state, said=opening or _words(state))
        system = (ChatMessage(role="system", content=self._instruction),) if self._instruction else ()
        return (*system, ChatMessage(role="user", content=told))

    async def step(self, text: str) -> Turn:
        """As `Environment.step`."""
        assert self._game is not None, "an environment is reset before its first step"
        lines = without_thoughts(text).splitlines() or [""]
        with _LOCK:
            state, score, has_ended = self._game.step(lines[-1].strip())
        reward, self._score = (float(score) - self._score) / self._max_score, float(score)
        return Turn(
            messages=(ChatMessage(role="user", content=self._told(state, said=_words(state))),),
            reward=reward,
            done=bool(has_ended),
            info={"score": self._score, "max_score": self._max_score, "has_won": bool(state.get("won"))},
        )

    async def close(self) -> None:
        """Ends the game, and takes its generated file away."""
        if self._game is not None:
            self._game.close()
        if self._folder is not None:
            self._folder.cleanup()

    def start(self, example: Example) -> Game:
        """The game of this example."""
        textworld = _textworld()
        wanted = textworld.EnvInfos(
            objective=True, description=True, score=True, max_score=True, won=True, admissible_commands=True
        )
        files = self._files
        path = files[example.index % len(files)] if files else self._generated(textworld, example.index)
        game: Game = textworld.start(str(path), request_infos=wanted)
        return game

    def _generated(self, textworld: Any, index: int) -> str:  # Any: the package has no types
        self._folder = tempfile.TemporaryDirectory(prefix="preceptor-textworld-")
        options = textworld.GameOptions()
        options.seeds = self._seed + index
        options.path = str(Path(self._folder.name) / "game.z8")
        for name, value in self._size.items():
            setattr(options, name, value)
        path, _ = textworld.make(options)
        return str(path)

    def _told(self, state: Mapping[str, Any], *, said: str) -> str:
        commands = state.get("admissible_commands") if self._shows_commands else None
        return f"{said}\n\nCommands: {', '.join(sorted(commands))}" if commands else said


def _game_files(game: str) -> list[Path]:
    path = Path(game).expanduser()
    files = sorted(one for one in path.iterdir() if one.suffix in (".z8", ".ulx")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InvalidPartError(f"game={game!r}: no such file, and no folder with .z8 or .ulx files: name one")
    return files


def _words(state: Mapping[str, Any]) -> str:
    """What the game says, without its command prompt and the status line that it draws behind it."""
    feedback = str(state.get("feedback") or "")
    before, prompt, _ = feedback.rpartition("\n>")
    return (before if prompt else feedback).strip() or "Nothing happens."


def _textworld() -> Any:  # Any: the package has no types
    try:
        import textworld
    except ModuleNotFoundError as error:
        raise InvalidPartError(
            f"needs the package textworld: pip install 'preceptor[environments]' ({error})"
        ) from error
    return textworld
