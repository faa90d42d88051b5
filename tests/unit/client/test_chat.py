"""Chats with tools, calls and template arguments: what is sent, what is refused, and what an old server never gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from preceptor.json_values import JsonObject
from preceptor.v1 import teacher_pb2
from preceptor_client import Chat, ChatMessage, TeacherClient, ToolCall
from preceptor_client.errors import InvalidRequestError, NotImplementedByServerError
from preceptor_client.types import Capabilities

from tests.unit.client.scripted_teacher import TEXT_PROMPT_IDS, ScriptedTeacher, serving

# Nothing listens there: a call that were sent would fail otherwise than the tests say.
NOBODY = "127.0.0.1:1"
USER = ChatMessage("user", "Weather?")
TOOL: JsonObject = {
    "type": "function",
    "function": {"name": "weather", "description": "ø", "parameters": {"b": 1, "a": 2}},
}
CHAT = Chat(
    (
        USER,
        ChatMessage("assistant", tool_calls=(ToolCall("weather", {"city": "Oslo"}, id="c1"),), reasoning_content=""),
        ChatMessage("tool", "rain", tool_call_id="c1", name="weather"),
    ),
    tools=(TOOL,),
    template_arguments={"enable_thinking": False},
)
ARGUMENTS = [
    CHAT,
    Chat((USER,), tools=(TOOL,)),
    Chat((USER,), template_arguments={"enable_thinking": True}),
    Chat((USER, ChatMessage("assistant", tool_calls=(ToolCall("now"),)))),
    Chat((ChatMessage("user", "hi", name="bo"),)),
    Chat((USER, ChatMessage("assistant", "4", reasoning_content="2 + 2"))),
]


async def test_a_chat_is_sent_with_all_that_it_says() -> None:
    teacher = ScriptedTeacher(takes_chat_arguments=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        scores = await client.score(CHAT, [[10]], top_k=2)
    assert scores.prompt_ids.tolist() == list(TEXT_PROMPT_IDS)
    sent = teacher.requests[0].prompt.chat
    assert sent.messages[0] == teacher_pb2.ChatMessage(role="user", content="Weather?")
    assert not sent.messages[0].HasField("reasoning_content")
    [call] = sent.messages[1].tool_calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("c1", "weather", {"city": "Oslo"})
    assert sent.messages[1].HasField("reasoning_content")
    assert sent.messages[2] == teacher_pb2.ChatMessage(role="tool", content="rain", tool_call_id="c1", name="weather")
    assert [json.loads(tool) for tool in sent.tools] == [TOOL]
    assert sent.tools[0].index('"b"') < sent.tools[0].index('"a"'), "templates write keys in their order"
    assert json.loads(sent.template_arguments) == {"enable_thinking": False}


@pytest.mark.parametrize("chat", ARGUMENTS)
async def test_nothing_is_sent_to_a_server_that_would_ignore_it(chat: Chat) -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        with pytest.raises(NotImplementedByServerError, match=rf"prompt\.chat: {address} would ignore tools"):
            await client.score(chat, [[10]], top_k=2)
        await client.score(Chat((USER,)), [[10]], top_k=2)
    assert [list(request.prompt.chat.messages) for request in teacher.requests] == [
        [teacher_pb2.ChatMessage(role="user", content="Weather?")]
    ]


async def test_a_server_is_asked_once_per_connection_and_not_for_plain_chats() -> None:
    teacher = ScriptedTeacher(takes_chat_arguments=True)
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(Chat((USER,)), [[10]], top_k=2)
        assert teacher.num_infos == 0
        for _ in range(3):
            await client.score(CHAT, [[10]], top_k=2)
        assert teacher.num_infos == 1


async def test_an_older_server_behind_a_new_connection_is_asked_anew() -> None:
    new, old = ScriptedTeacher(takes_chat_arguments=True), ScriptedTeacher()
    async with serving(new) as address:
        client = TeacherClient(address, timeout_seconds=20)
        await client.score(CHAT, [[10]], top_k=2)
    async with client, serving(old, port=int(address.rpartition(":")[2])):
        with pytest.raises(NotImplementedByServerError, match="would ignore tools"):
            await client.score(CHAT, [[10]], top_k=2)
    assert old.requests == []


async def test_each_of_several_replicas_is_asked() -> None:
    teachers = [ScriptedTeacher(takes_chat_arguments=True), ScriptedTeacher(takes_chat_arguments=True)]
    async with serving(teachers[0]) as one, serving(teachers[1]) as other, TeacherClient(f"{one},{other}") as client:
        for index in range(12):
            chat = Chat((ChatMessage("user", str(index)),), tools=(TOOL,))
            await client.score(chat, [[10]], top_k=2)
    assert sum(len(teacher.requests) for teacher in teachers) == 12
    assert all(teacher.requests for teacher in teachers)


async def test_a_teacher_that_is_not_hosted_is_the_servers_to_refuse() -> None:
    teacher = ScriptedTeacher()
    async with serving(teacher) as address, TeacherClient(address) as client:
        await client.score(CHAT, [[10]], top_k=2, teacher="nobody")
    assert teacher.requests[0].teacher == "nobody"


NOT_A_NUMBER = float("nan")
DEEP: dict[str, Any] = {}
DEEP["a"] = DEEP
MISTAKES: dict[str, tuple[Chat, str, str]] = {
    "tool with NaN": (Chat((USER,), tools=(TOOL, {"a": NOT_A_NUMBER})), "prompt.chat.tools[1]", "holds nan"),
    "tool inside itself": (Chat((USER,), tools=(DEEP,)), "prompt.chat.tools[0]", "nested deeper than 64"),
    "tool that is a function": (Chat((USER,), tools=(print,)), "prompt.chat.tools[0]", "must be a JSON object"),  # type: ignore[arg-type]  # a mistake
    "too many tools": (Chat((USER,), tools=(TOOL,) * 1025), "prompt.chat.tools", "has 1025 tools, more than 1024"),
    "arguments that are no JSON": (
        Chat((USER,), template_arguments={"a": {1, 2}}),  # type: ignore[dict-item]  # a mistake
        "prompt.chat.template_arguments",
        "holds a set",
    ),
    "call without a name": (
        Chat((USER, ChatMessage("assistant", tool_calls=(ToolCall("f"), ToolCall(""))))),
        "prompt.chat.messages[1].tool_calls[1].name",
        "is empty",
    ),
    "call of no object": (
        Chat((USER, ChatMessage("assistant", tool_calls=(ToolCall("f", "{}"),)))),  # type: ignore[arg-type]  # a mistake
        "prompt.chat.messages[1].tool_calls[0].arguments",
        "holds a str, must be a JSON object",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_costs_no_round_trip_and_names_its_field(mistake: str) -> None:
    chat, field, says = MISTAKES[mistake]
    async with TeacherClient(NOBODY, timeout_seconds=1) as client:
        with pytest.raises(InvalidRequestError, match=says) as caught:
            await client.score(chat, [[1]], top_k=2)
    assert (caught.value.field, caught.value.reason) == (field, "REFUSED_BY_CLIENT")


async def test_info_tells_whether_chat_arguments_are_taken() -> None:
    for takes in (True, False):
        async with serving(ScriptedTeacher(takes_chat_arguments=takes)) as address, TeacherClient(address) as client:
            capabilities: Capabilities = (await client.info()).teachers[0].capabilities
        assert capabilities.chat_arguments is takes
