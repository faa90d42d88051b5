from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import checked_tools
from preceptor_client.train.environment.functions import Function, FunctionTool
from preceptor_client.train.environment.tool_calls import HermesToolCalls, WrittenCall
from preceptor_client.train.environment.tools import ToolEnvironment
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.types import ChatMessage
from pydantic import Field

from tests.unit.client.train.environment.episodes import play

EXAMPLE = Example(index=0, prompt="Capital of Norway?", answer="Oslo", other_answers=("Kristiania",))


def capital(country: Annotated[str, Field(description="In English.")], upper: bool = False) -> str:
    """The capital of a country."""
    found = {"Norway": "Oslo"}[country]
    return found.upper() if upper else found


async def half(number: float) -> dict[str, float]:
    return {"half": number / 2}


class Capitals(ToolEnvironment):
    def functions(self) -> Sequence[Function]:
        return (capital, half)


def _call(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_schema_says_what_the_function_says() -> None:
    assert FunctionTool(capital).schema == {
        "type": "function",
        "function": {
            "name": "capital",
            "description": "The capital of a country.",
            "parameters": {
                "type": "object",
                "properties": {
                    "country": {"type": "string", "description": "In English."},
                    "upper": {"type": "boolean", "default": False},
                },
                "required": ["country"],
            },
        },
    }
    assert len(checked_tools(Capitals().tools)) == 2


def test_student_calls_until_it_answers() -> None:
    upper = _call('{"name": "capital", "arguments": {"country": "Norway", "upper": true}}')
    as_text = _call('{"name": "half", "arguments": "{\\"number\\": 3}"}')
    texts = [f"Let me see. {upper}{as_text}", "It is Oslo."]
    opening, (calls, answer) = play(Capitals(), EXAMPLE, texts)
    assert opening == (ChatMessage(role="user", content="Capital of Norway?"),)
    assert calls.messages == (
        ChatMessage(role="tool", content="OSLO", name="capital"),
        ChatMessage(role="tool", content='{"half": 1.5}', name="half"),
    )
    assert (calls.done, calls.reward) == (False, None)
    assert calls.reward_if_cut == 0.0
    assert (answer.done, answer.reward, answer.messages) == (True, 1.0, ())
    assert answer.info == {"num_tool_calls": 2, "num_failed_tool_calls": 0}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ('{"name": "capitol", "arguments": {}}', "error: there is no tool 'capitol', only capital, half"),
        ('{"name": "capital", "arguments": {}}', "error: capital: country: Field required"),
        ('{"name": "capital", "arguments": {"country": 3}}', "error: capital: country: Input should be a valid string"),
        ('{"name": "capital", "arguments": {"country": "Norway", "x": 1}}', "error: capital: x: Extra inputs are not"),
        ('{"name": "capital", "arguments": {"country": "Mars"}}', "error: KeyError: 'Mars'"),
        ('{"name": "capital", "arguments": [1]}', "error: the call's 'arguments' must be an object; they are [1]"),
        ('{"name": "capital", "arguments": "{"}', "error: the call's 'arguments' are not a JSON object: not JSON"),
        ('{"name": ["capital"]}', "error: the call's 'name' must be a text; it is ['capital']"),
        ("{'name': 'capital'}", "error: the call is not a JSON object: not JSON"),
        ("[]", "error: the call is not a JSON object: holds a list"),
    ],
)  # fmt: skip
def test_call_that_cannot_be_made_is_answered_with_why(call: str, expected: str) -> None:
    _, (turn,) = play(Capitals(), EXAMPLE, [_call(call)])
    (message,) = turn.messages
    assert message.role == "tool"
    assert message.content.startswith(expected)
    assert turn.info == {"num_tool_calls": 1, "num_failed_tool_calls": 1}
    assert not turn.done


def test_calls_are_read_behind_the_thinking_and_one_may_be_cut() -> None:
    parser = HermesToolCalls()
    call = '<tool_call>{"name": "f"}</tool_call>'
    assert parser.parse(f"<think>{call}</think>no") == []
    assert parser.parse(f"{call} and {call}") == [WrittenCall(name="f")] * 2
    assert parser.parse('<tool_call>{"name": "f"}') == [WrittenCall(problem="the call has no </tool_call>")]
    assert [one.problem for one in parser.parse(f"<tool_call>{call}")] == ["the call has no </tool_call>", ""]


@pytest.mark.parametrize(
    ("example", "text", "reward"),
    [
        (EXAMPLE, "<think>Oslo?</think>Bergen", 0.0),
        (EXAMPLE, "<think>Bergen?</think>Kristiania.", 1.0),
        (Example(index=0, prompt="a"), "Oslo", None),
    ],
)
def test_reward_is_whether_an_answer_is_contained(example: Example, text: str, reward: float | None) -> None:
    _, (turn,) = play(Capitals(), example, [text])
    assert turn.reward == reward


def test_reward_and_parser_may_be_ones_own() -> None:
    class Shout:
        def parse(self, text: str) -> list[WrittenCall]:
            return [WrittenCall(name="capital", arguments={"country": text})] if text.isupper() else []

    class Own(Capitals):
        parser = Shout()

        async def reward(self, text: str) -> float:
            return len(text) + self.example.index

    _, (call, answer) = play(Own(), EXAMPLE, ["NORWAY", "done"])
    assert call.messages == (ChatMessage(role="tool", content="error: KeyError: 'NORWAY'", name="capital"),)
    assert answer.reward == 4.0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda *values: None, "argument 'values' has no name in a call"),
        (len, "argument 'obj' has no name in a call"),
    ],
)
def test_function_that_no_schema_describes_is_refused(function: Any, expected: str) -> None:
    with pytest.raises(InvalidPartError, match=expected):
        FunctionTool(function)
