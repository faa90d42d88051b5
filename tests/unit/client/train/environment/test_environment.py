from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import preceptor_client
import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import (
    Turn,
    checked_messages,
    checked_tools,
    checked_turn,
    environment_maker,
    prompt_messages,
)
from preceptor_client.train.errors import InvalidEpisodeError, InvalidPartError
from preceptor_client.types import ChatMessage

ROOM = Path(preceptor_client.__file__).parent / "train" / "environment"
HERE = "tests.unit.client.train.environment.test_environment"


class Counter:
    """An environment with an option."""

    def __init__(self, *, first: int = 0) -> None:
        if first < 0:
            raise ValueError("first is below 0")
        self.first = first

    async def reset(self, example: Example) -> list[dict[str, str]]:
        return [{"role": "user", "content": str(self.first)}]

    async def step(self, text: str) -> Turn:
        return Turn(done=True)


class Mute:
    """Lacks step."""

    async def reset(self, example: Example) -> list[dict[str, str]]:
        return []


def test_room_knows_no_student_no_engine_and_no_torch() -> None:
    imported = {
        node.module
        for path in ROOM.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("preceptor_client.train.")
    }
    rooms = {module.split(".")[2] for module in imported}
    assert rooms == {"data", "environment", "errors", "parts"}
    modules = ", ".join(f"preceptor_client.train.environment.{path.stem}" for path in ROOM.glob("[a-z]*.py"))
    program = (
        f"import sys, {modules}; print({{'torch', 'transformers', 'reasoning_gym', 'textworld'}} & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_maker_makes_a_new_environment_with_its_options_each_time() -> None:
    make = environment_maker(f"{HERE}:Counter", {"first": 3}, key="environment.kind")
    one, other = make(), make()
    assert one is not other
    assert isinstance(one, Counter)
    assert one.first == 3


class Shuffled:
    """Keeps an option that can be changed."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    async def reset(self, example: Example) -> list[ChatMessage]:
        return []

    async def step(self, text: str) -> Turn:
        return Turn(done=True)


def test_no_two_environments_share_the_value_of_an_option() -> None:
    make = environment_maker(f"{HERE}:Shuffled", {"words": ["a"]}, key="environment.kind")
    one, other = make(), make()
    assert isinstance(one, Shuffled)
    assert isinstance(other, Shuffled)
    one.words.append("b")
    assert (other.words, other.words is one.words) == (["a"], False)
    third = make()
    assert isinstance(third, Shuffled)
    assert third.words == ["a"]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("gym", {}, "environment.kind='gym' is not an environment: write one of reasoning_gym, textworld, or package"),
        (f"{HERE}:Mute", {}, "Mute has no method step(self, text: 'str')"),
        (f"{HERE}:Counter", {"frist": 3}, "environment.options.frist: Counter has no such option; it has: first"),
        (f"{HERE}:Counter", {"first": "x"}, "environment.options.first: Input should be a valid integer"),
        (f"{HERE}:Counter", {"first": -1}, "refuses them: first is below 0"),
    ],
)
def test_what_cannot_be_made_is_told_before_the_first_episode(
    kind: str, options: dict[str, int | str], expected: str
) -> None:
    with pytest.raises(InvalidPartError) as caught:
        environment_maker(kind, options, key="environment.kind")
    assert expected in str(caught.value)


def test_turn_may_be_a_tuple_of_foreign_numbers() -> None:
    turn = checked_turn(([{"role": "user", "content": "a"}], np.float32(0.5), np.bool_(False)), of="step()")
    assert turn == checked_turn(Turn(messages=[ChatMessage(role="user", content="a")], reward=0.5), of="step()")
    assert type(turn.reward) is float
    assert type(turn.done) is bool


@pytest.mark.parametrize(
    "value", ["go", {"role": "user", "content": "go"}, ChatMessage(role="user", content="go"), None]
)
def test_one_message_is_no_conversation(value: object) -> None:
    with pytest.raises(InvalidEpisodeError, match=r"^reset\(\) gave .*: give a list of messages"):
        checked_messages(value, of="reset()")


def test_tools_that_are_no_schemas_are_named() -> None:
    assert checked_tools(None) == ()
    assert checked_tools([{"type": "function", "function": {"name": "f"}}]) == (
        '{"type": "function", "function": {"name": "f"}}',
    )
    with pytest.raises(InvalidEpisodeError, match=r"tools number 0 must be \{'type': 'function'"):
        checked_tools([{"name": "f"}])


def test_prompt_of_text_is_what_a_user_says() -> None:
    message = ChatMessage(role="system", content="b")
    assert prompt_messages(Example(index=0, prompt="a")) == (ChatMessage(role="user", content="a"),)
    assert prompt_messages(Example(index=0, prompt=(message,))) == (message,)
