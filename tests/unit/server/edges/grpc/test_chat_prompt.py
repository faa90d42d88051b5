"""A chat on the wire: what becomes of it, and how a mistake in it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from preceptor.chat import MAX_TOOLS, Chat, ChatMessage, ToolCall
from preceptor.json_values import MAX_JSON_CHARACTERS
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.alignment.sent_chat import read_chat
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.edges.grpc.chat import to_sent_chat
from preceptor_server.edges.grpc.description import encode_info
from preceptor_server.errors import InvalidRequestError
from preceptor_server.hosted import HostedTeacher

from tests.tiny import tiny_tokenizer
from tests.unit.server.alignment.chat_templates import QWEN3
from tests.unit.server.hosting import hosted_teacher
from tests.unit.server.preparing import prepared

WEATHER: dict[str, Any] = {  # Any: whatever JSON holds
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object"}},
}
CALL: dict[str, Any] = {"name": "weather", "arguments": {"city": "Oslo"}}


def chat() -> pb.ChatPrompt:
    call = pb.ToolCall(id="c1", name="weather", arguments=json.dumps(CALL["arguments"]))
    return pb.ChatPrompt(
        messages=[
            pb.ChatMessage(role="user", content="Weather?", name="bo"),
            pb.ChatMessage(role="assistant", tool_calls=[call], reasoning_content=""),
            pb.ChatMessage(role="tool", content="rain", tool_call_id="c1"),
        ],
        tools=[json.dumps(WEATHER)],
        template_arguments='{"enable_thinking": false}',
    )


def request(sent: pb.ChatPrompt) -> pb.ScoreRequest:
    response = pb.Response(ids=pb.TokenIds(data=b"\x05\x00", dtype=pb.TOKEN_DTYPE_U16))
    return pb.ScoreRequest(prompt=pb.Prompt(chat=sent), responses=[response], top_k=2, temperature=1)


@pytest.fixture(scope="module")
def teacher() -> HostedTeacher:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN3
    return hosted_teacher(tokenizer=TeacherTokenizer(tokenizer), max_model_len=2048)


def test_a_chat_is_decoded_with_all_that_it_says() -> None:
    assert read_chat(to_sent_chat(chat())) == Chat(
        (
            ChatMessage("user", "Weather?", name="bo"),
            ChatMessage(
                "assistant", tool_calls=(ToolCall("weather", {"city": "Oslo"}, id="c1"),), reasoning_content=""
            ),
            ChatMessage("tool", "rain", tool_call_id="c1"),
        ),
        tools=(WEATHER,),
        template_arguments={"enable_thinking": False},
    )


def test_what_is_left_out_is_absent() -> None:
    sent = pb.ChatPrompt(messages=[pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall(name="now")])])
    assert read_chat(to_sent_chat(sent)) == Chat((ChatMessage("assistant", tool_calls=(ToolCall("now"),)),))
    assert read_chat(to_sent_chat(sent)).messages[0].reasoning_content is None


def test_the_prompt_is_what_transformers_writes(teacher: HostedTeacher) -> None:
    tokenizer = tiny_tokenizer()
    turns: list[dict[str, Any]] = [  # Any: whatever a template reads
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": "rain"},
    ]
    encoded: Any = tokenizer.apply_chat_template(  # Any: its type depends on its arguments
        turns,
        tools=[WEATHER],
        enable_thinking=False,
        chat_template=QWEN3,
        add_generation_prompt=True,
    )
    expected = encoded["input_ids"]
    call = prepared(request(chat()), teacher)
    assert call.prompt_ids_P.tolist() == expected
    assert call.returns_prompt_ids
    assert "<think>" in tokenizer.decode(expected[-20:])


Change = Callable[[pb.ChatPrompt], object]
MISTAKES: dict[str, tuple[Change, str, str]] = {
    "tool that is no JSON": (lambda c: c.tools.append("{"), "tools[1]", "not JSON: "),
    "tool that is empty": (lambda c: c.tools.append(""), "tools[1]", "not JSON: "),
    "tool that is a list": (lambda c: c.tools.append("[]"), "tools[1]", "holds a list, must be a JSON object"),
    "tool that is deep": (lambda c: c.tools.append("[" * 99_999), "tools[1]", "nested deeper than 64"),
    "tool that is long": (lambda c: c.tools.append(" " * (MAX_JSON_CHARACTERS + 1)), "tools[1]", "more than 1,048,576"),
    "too many tools": (lambda c: c.tools.extend(["{}"] * MAX_TOOLS), "tools", "1025 exceed 1024 tools"),
    "arguments that are no JSON": (
        lambda c: setattr(c, "template_arguments", "enable_thinking"),
        "template_arguments",
        "not JSON: ",
    ),
    "arguments that are no object": (
        lambda c: setattr(c, "template_arguments", "1"),
        "template_arguments",
        "holds a int",
    ),
    "argument that is unknown": (
        lambda c: setattr(c, "template_arguments", '{"thinking": true}'),
        "template_arguments",
        "'thinking' is never read by the teacher's chat template, which reads 'enable_thinking'",
    ),
    "argument that is the server's": (
        lambda c: setattr(c, "template_arguments", '{"add_generation_prompt": false}'),
        "template_arguments",
        "'add_generation_prompt' is set by Preceptor",
    ),
    "call without a name": (
        lambda c: c.messages[1].tool_calls.add(arguments="{}"),
        "messages[1].tool_calls[1].name",
        "is empty",
    ),
    "call of no object": (
        lambda c: c.messages[1].tool_calls.add(name="f", arguments="3"),
        "messages[1].tool_calls[1].arguments",
        "holds a int, must be a JSON object",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_its_field(teacher: HostedTeacher, mistake: str) -> None:
    change, field, says = MISTAKES[mistake]
    sent = chat()
    change(sent)
    with pytest.raises(InvalidRequestError, match=says) as caught:
        prepared(request(sent), teacher)
    assert caught.value.field == f"prompt.chat.{field}"
    assert caught.value.reason == "INVALID_FIELD"


def test_only_a_teacher_with_a_chat_template_promises_chat_arguments(teacher: HostedTeacher) -> None:
    bare = tiny_tokenizer()
    bare.chat_template = None
    teachers = [teacher, hosted_teacher(tokenizer=TeacherTokenizer(bare)), hosted_teacher()]
    infos = [encode_info([one], include_tokenizer=False).teachers[0] for one in teachers]
    assert [info.capabilities.chat_arguments for info in infos] == [True, False, False]
