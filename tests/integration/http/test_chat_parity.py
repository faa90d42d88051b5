"""A conversation with tools over gRPC, over HTTP and through the client: one prompt, the same numbers, one refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from preceptor.json_values import JsonObject
from preceptor.wire import LogprobDtype
from preceptor_client import BlockingTeacherClient, Chat, ChatMessage, ToolCall
from preceptor_client.errors import InvalidRequestError

from tests.integration.http.serving import Body, BothWays, running_both
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.server.alignment.chat_templates import QWEN3

TOOL: JsonObject = {
    "type": "function",
    "function": {"name": "weather", "description": "<ø>", "parameters": {"type": "object", "properties": {}}},
}
CHAT = Chat(
    (
        ChatMessage("user", "Weather?"),
        ChatMessage(
            "assistant", tool_calls=(ToolCall("weather", {"city": "Oslo", "days": 2}, id="c1"),), reasoning_content="hm"
        ),
        ChatMessage("tool", "rain", tool_call_id="c1", name="weather"),
    ),
    tools=(TOOL,),
    template_arguments={"enable_thinking": False},
)
CALL: Body = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo","days":2}'}}
PROMPT: Body = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ],
    "tools": [TOOL],
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    folder: Path = tmp_path_factory.mktemp("tools")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN3
    tiny_llama(max_length=2048).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = ["--engine.model", str(folder), "--http.share", "1"]
    with running_both(tmp_path_factory.mktemp("server"), *arguments) as running:
        yield running


@pytest.fixture
def http(both: BothWays) -> Iterator[httpx.Client]:
    with both.client() as opened:
        yield opened


@pytest.fixture
def grpc(both: BothWays) -> Iterator[BlockingTeacherClient]:
    with BlockingTeacherClient(both.server.address) as opened:
        yield opened


def test_both_ways_score_what_transformers_renders(http: httpx.Client, grpc: BlockingTeacherClient) -> None:
    call = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}}
    turns: list[dict[str, Any]] = [  # Any: whatever a template reads
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]
    rendered: Any = tiny_tokenizer().apply_chat_template(  # Any: its type depends on its arguments
        turns, tools=[TOOL], enable_thinking=False, chat_template=QWEN3, add_generation_prompt=True
    )
    scores = grpc.score(CHAT, [[70, 71, 72]], top_k=5, logprob_dtype=LogprobDtype.F32, batch_invariant=True)
    assert scores.prompt_ids.tolist() == rendered["input_ids"]
    body = {"prompt": PROMPT, "responses": [{"ids": [70, 71, 72]}], "top_k": 5, "batch_invariant": True}
    answer = http.post("/v1/topk", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["prompt_ids"] == rendered["input_ids"]
    [shown] = answer.json()["responses"]
    np.testing.assert_array_equal(np.float32(shown["support_logprobs"]), scores.responses[0].support_logprobs_NK)
    np.testing.assert_array_equal(shown["support_ids"], scores.responses[0].support_ids_NK)


def test_an_argument_changes_the_prompt_and_the_numbers(grpc: BlockingTeacherClient) -> None:
    thinking = Chat(CHAT.messages, tools=CHAT.tools, template_arguments={"enable_thinking": True})
    one, other = (grpc.score(chat, [[70]], top_k=5, batch_invariant=True) for chat in (CHAT, thinking))
    assert len(one.prompt_ids) == len(other.prompt_ids) + len("<think>\n\n</think>\n\n")
    assert one.responses[0].sampled_logprobs_N != other.responses[0].sampled_logprobs_N


def test_a_refusal_has_the_same_words_and_each_edges_field(http: httpx.Client, grpc: BlockingTeacherClient) -> None:
    with pytest.raises(InvalidRequestError, match="'thinking' is never read by the teacher's chat template") as caught:
        grpc.score(Chat(CHAT.messages, template_arguments={"thinking": 1}), [[70]], top_k=2)
    assert caught.value.field == "prompt.chat.template_arguments"
    told = http.post("/v1/topk", json={"prompt": PROMPT | {"chat_template_kwargs": {"thinking": 1}}}).json()
    assert told["field"] == "prompt.chat_template_kwargs"
    assert told["detail"].partition(": ")[2] in str(caught.value)


def test_both_ways_promise_chat_arguments(http: httpx.Client, grpc: BlockingTeacherClient) -> None:
    assert grpc.info().teachers[0].capabilities.chat_arguments
    assert json.loads(http.get("/v1/info").content)["teachers"][0]["capabilities"]["chat_arguments"] is True
