"""Environments for tests: one that says what it is told to, and one of each kind that goes wrong."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Messages, Turn

RELEASE = threading.Event()
"""Lets go of those that block: no thread outlives its test."""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@dataclass(kw_only=True)
class Talker:
    """Says its lines one by one, and is done after the last."""

    opening: Messages = (user("go"),)
    lines: Sequence[Turn] = ()
    heard: list[str] = field(default_factory=list)
    num_closed: int = 0

    async def reset(self, example: Example) -> Messages:
        return self.opening

    async def step(self, text: str) -> Turn:
        self.heard.append(text)
        number = len(self.heard) - 1
        return self.lines[number] if number < len(self.lines) else Turn(done=True)

    async def close(self) -> None:
        self.num_closed += 1


def says(*texts: str) -> list[Turn]:
    return [Turn(messages=[user(text)]) for text in texts]


class Unreadable:
    """As a tensor of two numbers."""

    def __float__(self) -> float:
        raise RuntimeError("two numbers")


def _lazy() -> Iterator[dict[str, str]]:
    yield user("a")
    raise OSError("gone")


@dataclass(kw_only=True)
class Misfit:
    """Goes wrong at its second step, or where `how` says."""

    how: str
    num_steps: int = 0

    @property
    def tools(self) -> list[Any]:  # Any: as below
        if self.how == "tools raise":
            raise OSError("locked")
        return [{"name": "f"}] if self.how == "tools are no schemas" else []

    def __post_init__(self) -> None:
        if self.how == "constructor raises":
            raise RuntimeError("no room")

    async def reset(self, example: Example) -> Any:  # Any: what is wrong is no conversation
        given = {"reset gives text": "go", "reset gives nothing": [], "reset gives no role": [{"content": "go"}]}
        return given.get(self.how, [user("go")])

    async def step(self, text: str) -> Any:  # Any: as above
        self.num_steps += 1
        if self.num_steps < 2:
            return Turn(messages=[user("again")])
        match self.how:
            case "blocks":
                RELEASE.wait()
            case "hangs":
                await asyncio.sleep(3600)
            case "raises":
                raise KeyError("door")
            case "exits":
                sys.exit(3)
            case "cancels":
                raise asyncio.CancelledError
        call = {"function": {"name": "f", "arguments": "{a: 1}"}}
        return {
            "gives text": "more",
            "gives nothing": None,
            "messages raise": (_lazy(), None, False),
            "reward raises": ([user("a")], Unreadable(), False),
            "gives no messages": Turn(),
            "reward is NaN": Turn(messages=[user("a")], reward=float("nan")),
            "reward is a text": ([user("a")], "1", False),
            "done is a text": ([user("a")], 1.0, "no"),
            "message is a text": (["a"], 1.0, False),
            "message has no role": ([{"content": "a"}], None, False),
            "message has parts": ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], None, False),
            "bad JSON": ([{"role": "assistant", "tool_calls": [call]}], None, False),
            "half a character": ([user("\ud83d")], None, False),
            "info is a list": Turn(messages=[user("a")], info=[1]),  # type: ignore[arg-type]
        }.get(self.how)


MISFITS = {
    "constructor raises": "its environment's constructor failed: RuntimeError: no room",
    "reset gives text": "its environment's reset() gave 'go': give a list of messages",
    "reset gives nothing": "its environment's reset() gave no messages",
    "reset gives no role": "its environment's reset(): message 0 must be {'role': text",
    "blocks": "its environment's step() took longer than rollout.environment_timeout_seconds=2:",
    "hangs": "its environment's step() took longer than rollout.environment_timeout_seconds=2:",
    "raises": "its environment's step() failed: KeyError: 'door'",
    "exits": "its environment's step() failed: SystemExit: 3",
    "cancels": "its environment's step() was cancelled",
    "tools raise": "its environment's tools failed: OSError: locked",
    "tools are no schemas": "its environment's tools number 0 must be {'type': 'function'",
    "messages raise": "its environment's step() failed: OSError: gone",
    "reward raises": "its environment's step() failed: RuntimeError: two numbers",
    "gives text": "its environment's step() gave 'more': give a Turn, or a tuple",
    "gives nothing": "its environment's step() gave None: give a Turn, or a tuple",
    "gives no messages": "its environment's step(): no messages, and the episode is not done",
    "reward is NaN": "its environment's step(): reward is nan: give a finite number",
    "reward is a text": "its environment's step(): reward is '1': give a number or None",
    "done is a text": "its environment's step(): done is 'no': give True or False",
    "message is a text": "its environment's step(): message 0 must be {'role': text",
    "message has no role": "its environment's step(): message 0 must be {'role': text",
    "message has parts": "its environment's step(): message 0: its content must be a text (no list of parts)",
    "bad JSON": "its environment's step(): message 0: its tool_calls: number 0: its arguments: not JSON",
    "half a character": "its environment's step(): message 0: its content holds half a character",
    "info is a list": "its environment's step(): info is [1]: give a dict",
}
"""What is wrong with each, to what is told of it."""
