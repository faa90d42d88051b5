"""What docs/environments.md shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from preceptor_client.train.data.examples import Example

from tests.unit.client.train.environment.episodes import play

PAGE = Path(__file__).parents[5] / "docs" / "environments.md"


def _shown() -> dict[str, Any]:  # Any: whatever the page defines
    names: dict[str, Any] = {"__name__": "shown"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_guessing_ends_with_the_number() -> None:
    opening, turns = play(_shown()["Guess"](), Example(index=0, prompt="", answer="7"), ["3", "7\n"])
    assert opening[0].content == "Guess a number between 1 and 10."
    assert [(turn.reward, turn.done) for turn in turns] == [(None, False), (1.0, True)]


def test_tool_tells_the_capital() -> None:
    call = '<tool_call>{"name": "capital", "arguments": {"country": "Norway"}}</tool_call>'
    _, (turn,) = play(_shown()["Capitals"](), Example(index=0, prompt="a"), [call])
    assert [message.content for message in turn.messages] == ["Oslo"]
