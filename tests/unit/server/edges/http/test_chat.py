"""Conversations in OpenAI's shape: the same prompt as over gRPC, and mistakes under the names of the body."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from preceptor.chat import ChatMessage, ToolCall
from preceptor_server.alignment.sent_chat import SentChat, SentMessage, SentToolCall, read_chat
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.edges.http.chat import to_chat
from preceptor_server.edges.http.requests import PromptBody
from preceptor_server.hosted import HostedTeacher

from tests.tiny import tiny_tokenizer
from tests.unit.server.alignment.chat_templates import PLAIN, QWEN3
from tests.unit.server.edges.http.asking import Body, asking, group, problem
from tests.unit.server.hosting import hosted_teacher

TOOL: Body = {"type": "function", "function": {"name": "weather", "description": "<ø>", "parameters": {}}}
CALL: Body = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
PROMPT: Body = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ],
    "tools": [TOOL],
    "chat_template_kwargs": {"enable_thinking": False},
}


def teacher(template: str = QWEN3) -> HostedTeacher:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return hosted_teacher(vocabulary_size=259, tokenizer=TeacherTokenizer(tokenizer), max_model_len=2048)


async def asked(prompt: Body, template: str = QWEN3) -> httpx.Response:
    async with asking(teacher(template)) as running:
        return await running.topk(group(prompt=prompt))


def test_a_body_is_a_chat() -> None:
    chat = read_chat(to_chat(PromptBody.model_validate_json(json.dumps(PROMPT))))
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.messages[1] == ChatMessage(
        role="assistant",
        tool_calls=(ToolCall(id="c1", name="weather", arguments={"city": "Oslo"}),),
        reasoning_content="hm",
    )
    assert chat.messages[2] == ChatMessage(role="tool", content="rain", tool_call_id="c1", name="weather")
    assert chat.messages[0].reasoning_content is None
    assert list(chat.tools) == [TOOL]
    assert chat.template_arguments == {"enable_thinking": False}


def test_arguments_of_a_call_may_be_an_object_too() -> None:
    call = CALL | {"function": {"name": "weather", "arguments": {"b": 1.5, "a": ["ø", None]}}}
    message = {"role": "assistant", "tool_calls": [call]}
    sent = read_chat(to_chat(PromptBody.model_validate_json(json.dumps({"messages": [message]}))))
    assert sent.messages[0].tool_calls[0].arguments == {"b": 1.5, "a": ["ø", None]}
    assert list(sent.messages[0].tool_calls[0].arguments) == ["b", "a"]


def test_all_that_a_template_may_write_is_counted() -> None:
    call = SentToolCall(id="ignored", name="ignored", arguments="12345")
    message = SentMessage(role="1", content="12", reasoning_content="123", tool_calls=(call,))
    chat = SentChat(messages=(message,), tools=("123456", "1234567"), template_arguments="12345678")
    assert chat.num_characters == 1 + 2 + 3 + 5 + 6 + 7 + 8
    assert chat.num_json == 5 + 6 + 7 + 8


async def test_the_prompt_is_what_transformers_writes() -> None:
    tokenizer = tiny_tokenizer()
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    turns: list[dict[str, Any]] = [  # Any: whatever a template reads
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": "c1", "function": function}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]
    encoded: Any = tokenizer.apply_chat_template(  # Any: its type depends on its arguments
        turns, tools=[TOOL], enable_thinking=False, chat_template=QWEN3, add_generation_prompt=True
    )
    answer = await asked(PROMPT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["prompt_ids"] == encoded["input_ids"]


async def test_a_whole_conversation_can_be_scored_as_if_it_were_a_response() -> None:
    async with asking(teacher()) as running:
        following = (await running.topk({"prompt": PROMPT, "top_k": 3})).json()
        whole = (await running.topk({"prompt": PROMPT, "top_k": 3, "positions": "all"})).json()
    assert [*whole["prompt_ids"], *whole["responses"][0]["ids"]] == following["prompt_ids"]


def without(name: str) -> Body:
    return {key: value for key, value in PROMPT.items() if key != name}


def calling(**changes: object) -> Body:
    call = CALL | {"function": CALL["function"] | changes}
    return PROMPT | {"messages": [PROMPT["messages"][0], {"role": "assistant", "tool_calls": [call]}]}


MISTAKES: dict[str, tuple[Body, str]] = {
    "an argument that is never read": (
        PROMPT | {"chat_template_kwargs": {"enable_thinkin": False}},
        "prompt.chat_template_kwargs",
    ),
    "an argument of the server's": (PROMPT | {"chat_template_kwargs": {"tools": []}}, "prompt.chat_template_kwargs"),
    "kwargs that are a list": (PROMPT | {"chat_template_kwargs": []}, "prompt.chat_template_kwargs"),
    "a tool that is a text": (PROMPT | {"tools": [TOOL, "{}"]}, "prompt.tools[1]"),
    "a tool that is nested deeply": (
        PROMPT | {"tools": [json.loads('{"a":' * 70 + "1" + "}" * 70)]},
        "prompt.tools[0]",
    ),
    "no tools": (PROMPT | {"tools": []}, "prompt.tools"),
    "arguments of a call that are no JSON": (
        calling(arguments="city=Oslo"),
        "prompt.messages[1].tool_calls[0].function.arguments",
    ),
    "arguments of a call that are a list": (
        calling(arguments=[1]),
        "prompt.messages[1].tool_calls[0].function.arguments",
    ),
    "arguments of a call that are the text of a list": (
        calling(arguments="[1]"),
        "prompt.messages[1].tool_calls[0].function.arguments",
    ),
    "a call without a name": (calling(name=""), "prompt.messages[1].tool_calls[0].function.name"),
    "no calls": (
        PROMPT | {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
        "prompt.messages[0].tool_calls",
    ),
    "no content and no calls": (
        PROMPT | {"messages": [{"role": "user", "content": None}]},
        "prompt.messages[0].content",
    ),
    "tools beside a text": ({"text": "a", "tools": [TOOL]}, "prompt"),
    "kwargs beside ids": ({"teacher_ids": [3], "chat_template_kwargs": {}}, "prompt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_has_the_name_that_the_body_has_for_it(mistake: str) -> None:
    prompt, field = MISTAKES[mistake]
    assert problem(await asked(prompt)) == (400, "INVALID_FIELD", field)


async def test_numbers_that_json_lacks_are_400() -> None:
    async with asking(teacher()) as running:
        body = json.dumps({"prompt": PROMPT | {"tools": [{"a": float("nan")}]}, "top_k": 2})
        answer = await running.client.post("/v1/topk", content=body, headers={"content-type": "application/json"})
    assert problem(answer) == (400, "INVALID_FIELD", "prompt.tools[0]")
    assert answer.json()["detail"] == "prompt.tools[0]: not JSON: it holds NaN"


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (PROMPT | {"messages": PROMPT["messages"][:1], "chat_template_kwargs": {}}, "prompt.tools"),
        (without("tools") | {"chat_template_kwargs": {}}, "prompt.messages[1].tool_calls"),
    ],
)
@pytest.mark.parametrize("positions", ["next", "all"])
async def test_what_the_template_never_reads_is_refused(prompt: Body, field: str, positions: str) -> None:
    async with asking(teacher(PLAIN)) as running:
        answer = await running.topk({"prompt": prompt, "top_k": 2, "positions": positions})
    assert problem(answer) == (400, "INVALID_FIELD", field)
    assert "the teacher's chat template never reads" in answer.json()["detail"]


async def test_a_conversation_whose_tools_are_far_too_long_is_told_before_it_is_rendered() -> None:
    answer = await asked(PROMPT | {"tools": [{"a": "x" * 200_000}]})
    assert problem(answer) == (400, "BEYOND_CONTEXT", "prompt.messages")


async def test_align_takes_a_conversation_too() -> None:
    async with asking(teacher()) as running:
        answer = await running.client.post("/v1/align", json={"prompt": PROMPT, "response": {"text": "ab"}})
        refused = await running.client.post(
            "/v1/align", json={"prompt": PROMPT | {"chat_template_kwargs": {"x": 1}}, "response": {"text": "ab"}}
        )
    assert answer.status_code == 200, answer.text
    assert problem(refused) == (400, "INVALID_FIELD", "prompt.chat_template_kwargs")
