"""A conversation as a chat template reads it."""

from __future__ import annotations

import pickle
from types import MappingProxyType

import pytest
from preceptor.chat import Chat, ChatMessage, ToolCall


def test_a_message_of_role_and_content_has_nothing_else() -> None:
    assert ChatMessage("user", "hi").as_template_message() == {"role": "user", "content": "hi"}
    assert ChatMessage("assistant").as_template_message() == {"role": "assistant", "content": ""}


def test_a_message_with_everything_has_transformers_keys() -> None:
    call = ToolCall(name="add", arguments=MappingProxyType({"a": (1, 2)}), id="c1")
    message = ChatMessage("assistant", "so", tool_calls=(call, ToolCall("now")), name="bo", reasoning_content="hm")
    assert message.as_template_message() == {
        "role": "assistant",
        "content": "so",
        "reasoning_content": "hm",
        "tool_calls": [
            {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": [1, 2]}}},
            {"type": "function", "function": {"name": "now", "arguments": {}}},
        ],
        "name": "bo",
    }
    answer = ChatMessage("tool", "3", tool_call_id="c1").as_template_message()
    assert answer == {"role": "tool", "content": "3", "tool_call_id": "c1"}


def test_an_empty_thought_is_not_an_absent_one() -> None:
    assert ChatMessage("assistant", "4", reasoning_content="").as_template_message()["reasoning_content"] == ""


def test_arguments_that_are_not_json_are_refused() -> None:
    message = ChatMessage("assistant", tool_calls=(ToolCall("f", {"a": float("inf")}),))
    with pytest.raises(ValueError, match="holds inf"):
        message.as_template_message()


@pytest.mark.parametrize(
    ("chat", "has"),
    [
        (Chat((ChatMessage("user", "a"),)), False),
        (Chat((ChatMessage("user", "a"),), tools=({},)), True),
        (Chat((ChatMessage("user", "a"),), template_arguments={"enable_thinking": False}), True),
        (Chat((ChatMessage("user", "a"), ChatMessage("assistant", tool_calls=(ToolCall("f"),)))), True),
        (Chat((ChatMessage("tool", "a", tool_call_id="c"),)), True),
        (Chat((ChatMessage("user", "a", name="bo"),)), True),
        (Chat((ChatMessage("assistant", "a", reasoning_content=""),)), True),
    ],
)
def test_whatever_an_old_server_would_ignore_is_an_argument(chat: Chat, has: bool) -> None:
    assert chat.has_chat_arguments is has


def test_chats_are_hashed_compared_and_pickled_with_their_objects() -> None:
    def chat(city: str) -> Chat:
        call = ToolCall("weather", {"city": city})
        return Chat(
            (ChatMessage("assistant", tool_calls=(call,)),), tools=({"a": [city]},), template_arguments={"x": {}}
        )

    assert chat("Oslo") == chat("Oslo")
    assert len({chat("Oslo"), chat("Oslo")}) == 1
    assert chat("Oslo") != chat("Rome")
    assert pickle.loads(pickle.dumps(chat("Oslo"))) == chat("Oslo")  # noqa: S301  of our own making
