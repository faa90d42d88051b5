"""Tools, calls and template arguments: rendered as transformers does, refused where the template never reads them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from preceptor.chat import ChatMessage, ToolCall
from preceptor.json_values import JsonObject
from preceptor.template_inputs import RESERVED
from preceptor_server.alignment.chat_template import ChatTemplate
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.errors import InvalidRequestError
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from tests.unit.server.alignment.chat_templates import LLAMA3_1, MISTRAL, PLAIN, QWEN2_5, QWEN3

FIELD = "prompt.chat.messages"
# Keys out of the alphabet's order, text beyond ASCII, and what HTML would escape.
WEATHER: JsonObject = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in <city> & 你好",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: JsonObject = {"type": "function", "function": {"name": "clock", "description": "now", "parameters": {}}}
CALL = ToolCall(name="weather", arguments={"city": "Tromsø", "days": 2, "at": 1.5, "all": None}, id="abcdef123")
EPISODE = (
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "Weather?"),
    ChatMessage("assistant", "", tool_calls=(CALL,)),
    ChatMessage("tool", "rain", tool_call_id="abcdef123", name="weather"),
)
AGAIN = (*EPISODE, ChatMessage("user", "And now?"))


def templated(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def dicts(*messages: ChatMessage) -> list[JsonObject]:
    return [message.as_template_message() for message in messages]


def openai_dicts(messages: tuple[ChatMessage, ...]) -> list[dict[str, Any]]:  # Any: whatever a template reads
    """By hand, so that the oracle reads nothing of ours."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "assistant" and not message.content:
            function = {"name": "weather", "arguments": {"city": "Tromsø", "days": 2, "at": 1.5, "all": None}}
            turn["tool_calls"] = [{"type": "function", "id": "abcdef123", "function": function}]
        if message.role == "tool":
            turn |= {"tool_call_id": "abcdef123", "name": "weather"}
        if message.reasoning_content is not None:
            turn["reasoning_content"] = message.reasoning_content
        turns.append(turn)
    return turns


CASES: dict[str, tuple[str, tuple[ChatMessage, ...], list[JsonObject], JsonObject, str]] = {
    "Qwen2.5 with tools": (QWEN2_5, EPISODE, [WEATHER, CLOCK], {}, '"all": null}}\n</tool_call><|im_end|>'),
    "Qwen2.5 without": (QWEN2_5, (ChatMessage("user", "hi"),), [], {}, "created by Alibaba"),
    "Qwen3 that may think": (QWEN3, EPISODE, [WEATHER], {}, "</tool_response><|im_end|>\n<|im_start|>assistant\n"),
    "Qwen3 that shall not think": (QWEN3, EPISODE, [WEATHER], {"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    "Qwen3 told to think": (QWEN3, EPISODE, [WEATHER], {"enable_thinking": True}, "<|im_start|>assistant\n"),
    "Qwen3 with its thoughts": (
        QWEN3,
        (
            ChatMessage("user", "hi"),
            ChatMessage("assistant", "</think>kept", reasoning_content="hm"),
            ChatMessage("tool", "t"),
        ),
        [],
        {},
        "<think>\nhm\n</think>\n\n</think>kept",
    ),
    "Qwen3 with no thought": (
        QWEN3,
        (ChatMessage("user", "hi"), ChatMessage("assistant", "</think>kept", reasoning_content="")),
        [],
        {},
        "<think>\n\n</think>\n\n</think>kept",
    ),
    "Llama 3.1 with tools": (LLAMA3_1, AGAIN, [WEATHER], {"date_string": "1 Jan 2026"}, "Today Date: 1 Jan 2026"),
    "Llama 3.1 with tools in the system's turn": (
        LLAMA3_1,
        AGAIN,
        [WEATHER, CLOCK],
        {"date_string": "1", "tools_in_user_message": False},
        'functions.\n\n{\n    "type": "function"',
    ),
    "Mistral": (MISTRAL, (*EPISODE[1:], ChatMessage("user", "And?")), [WEATHER], {}, '"id": "abcdef123"}]<|im_end|>'),
    "ChatML": (PLAIN, EPISODE[:2], [], {}, "<|im_start|>user\nWeather?<|im_end|>"),
    "ChatML with a tool's turn": (PLAIN, (EPISODE[1], EPISODE[3]), [], {}, "<|im_start|>tool\nrain<|im_end|>"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_transformers_writes(case: str) -> None:
    template, messages, tools, arguments, holds = CASES[case]
    tokenizer = templated(template)
    expected = tokenizer.apply_chat_template(
        openai_dicts(messages),
        tools=tools or None,  # type: ignore[arg-type]  # the library's types are narrower than what it takes
        tokenize=False,
        add_generation_prompt=True,
        **arguments,  # type: ignore[arg-type]
    )
    written = ChatTemplate(tokenizer).render(dicts(*messages), tools=tools, arguments=arguments, field=FIELD)
    assert written == expected
    assert holds in written


def test_the_date_of_today_is_transformers_own() -> None:
    tokenizer = templated("{{ strftime_now('%Y') }} {{ messages[0].content }}")
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert ChatTemplate(tokenizer).render(dicts(ChatMessage("user", "hi")), field=FIELD) == expected


def test_tools_are_written_with_their_keys_in_the_order_in_which_they_came() -> None:
    turned: JsonObject = dict(reversed(WEATHER.items()))
    template = ChatTemplate(templated(QWEN3))
    one, other = (template.render(dicts(*EPISODE), tools=[tool], field=FIELD) for tool in (WEATHER, turned))
    assert '{"type": "function", "function": {"name": "weather", "description": "The weather in <city> & 你好"' in one
    assert other.index('{"function": ') < other.index('"type": "function"}\n</tools>')


def test_of_several_templates_the_one_for_tools_is_used_with_tools_as_transformers_does() -> None:
    tokenizer = templated({"default": PLAIN, "tool_use": QWEN3})
    messages, teacher = openai_dicts(EPISODE[:2]), TeacherTokenizer(tokenizer)
    for tools in ([], [WEATHER]):
        expected = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,  # type: ignore[arg-type]
            tokenize=False,
            add_generation_prompt=True,
        )
        assert ("<tools>" in expected) == bool(tools)
        ids = teacher.render(dicts(*EPISODE[:2]), tools=tools, field=FIELD).tolist()
        assert ids == tokenizer(expected, add_special_tokens=False)["input_ids"]
    assert teacher.takes_chat_arguments


def test_a_template_for_tools_alone_takes_tools_and_nothing_else() -> None:
    teacher = TeacherTokenizer(templated({"tool_use": QWEN3, "rag": "x"}))
    assert (teacher.has_chat_template, teacher.takes_chat_arguments) == (False, True)
    assert len(teacher.render(dicts(*EPISODE), tools=[WEATHER], field=FIELD)) > 100
    with pytest.raises(InvalidRequestError, match="chat templates 'rag', 'tool_use' and none of them is 'default'"):
        teacher.render(dicts(*EPISODE), field=FIELD)


REFUSALS: dict[str, tuple[str, dict[str, Any], str, str]] = {  # Any: arguments of render
    "tools that the template never reads": (PLAIN, {"tools": [WEATHER]}, "prompt.chat.tools", "never reads tools"),
    "an argument that the template never reads": (
        LLAMA3_1,
        {"arguments": {"enable_thinking": False}},
        "prompt.chat.template_arguments",
        r"'enable_thinking' is never read by the teacher's chat template, which reads 'custom_tools', 'date_string', "
        r"'first_user_message', 'tools_in_user_message': correct the name or leave it out",
    ),
    "an argument where there are none": (
        PLAIN,
        {"arguments": {"enable_thinking": False}},
        "prompt.chat.template_arguments",
        "which reads no further variables",
    ),
    "an argument that the template sets itself": (
        "{% set style = 'x' %}{{ style }}{{ messages[0].content }}",
        {"arguments": {"style": "y"}},
        "prompt.chat.template_arguments",
        "'style' is never read",
    ),
    "an argument that the template sets on every way to where it reads it": (
        "{% if tools %}{% set text = 'a' %}{% elif x %}{% set text = 'b' %}{% else %}{% set text = 'c' %}{% endif %}"
        "{{ text }}",
        {"arguments": {"text": "y"}},
        "prompt.chat.template_arguments",
        "'text' is never read by the teacher's chat template, which reads 'x':",
    ),
    "one that jinja2 knows": (
        "{% set ns = namespace(a=1) %}{{ ns.a }}",
        {"arguments": {"namespace": 1}},
        "prompt.chat.template_arguments",
        "'namespace' is never read",
    ),
    "a template that refuses tools": (
        "{% if tools %}{{ raise_exception('no tools, please') }}{% endif %}{{ messages[0].content }}",
        {"tools": [WEATHER]},
        "prompt.chat.tools",
        "refuses these tools: no tools, please",
    ),
    "a template that fails on tools": (
        "{% for tool in tools or [] %}{{ tool.name + 'x' }}{% endfor %}{{ messages[0].content }}",
        {"tools": [WEATHER]},
        "prompt.chat.tools",
        "refuses these tools: 'dict object' has no attribute 'name'",
    ),
    "a template that fails on an argument": (
        "{{ 1 / (divisor or 1) if divisor is defined else '' }}{{ 'x' * size if size is defined }}",
        {"arguments": {"size": "3"}},
        "prompt.chat.template_arguments",
        "fails on these template arguments with TypeError: can't multiply",
    ),
    "a template that fails without them too": (
        "{{ tools }}{{ size }}{{ raise_exception('never') }}",
        {"tools": [WEATHER], "arguments": {"size": 1}},
        FIELD,
        "refuses these messages: never",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_names_the_field_and_the_reason(case: str) -> None:
    template, given, field, says = REFUSALS[case]
    with pytest.raises(InvalidRequestError, match=says) as caught:
        ChatTemplate(templated(template)).render(dicts(*EPISODE[:2]), field=FIELD, **given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "tokenize", "bos_token", "chat_template"]
)
def test_names_that_the_server_sets_are_refused(name: str) -> None:
    template = templated("{{ bos_token }}{{ tools }}{{ messages }}{{ add_generation_prompt }}{{ tokenize }}")
    with pytest.raises(InvalidRequestError, match=f"'{name}' is set by Preceptor: leave it out") as caught:
        ChatTemplate(template).render(dicts(*EPISODE[:2]), arguments={name: "x"}, field=FIELD)
    assert caught.value.field == "prompt.chat.template_arguments"


def test_no_parameter_of_transformers_can_be_taken_for_a_template_argument() -> None:
    parameters = set(inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters) - {"kwargs"}
    # Documents reach the template under their own name, so a template that reads them may be given them.
    assert parameters - RESERVED == {"documents"}
    assert set(tiny_tokenizer().SPECIAL_TOKENS_ATTRIBUTES) <= RESERVED


def test_a_special_token_of_the_tokenizers_own_name_is_the_servers() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, extra_special_tokens={"image_token": "<|im_end|>"}
    )
    tokenizer.chat_template = "{{ image_token }}{{ messages[0].content }}"
    assert "image_token" in tokenizer.special_tokens_map
    with pytest.raises(InvalidRequestError, match="'image_token' is set by Preceptor"):
        ChatTemplate(tokenizer).render(dicts(*EPISODE[:2]), arguments={"image_token": "x"}, field=FIELD)


def test_documents_reach_a_template_that_reads_them() -> None:
    template = ChatTemplate(templated("{% for d in documents %}{{ d.text }}{% endfor %}{{ messages[0].content }}"))
    written = template.render(dicts(*EPISODE[:1]), arguments={"documents": [{"text": "one "}]}, field=FIELD)
    assert written == "one Be brief."


def test_calls_and_thoughts_that_the_template_never_reads_are_refused_by_their_turn() -> None:
    with pytest.raises(InvalidRequestError, match="never reads tool_calls") as caught:
        ChatTemplate(templated(PLAIN)).render(dicts(*EPISODE), field=FIELD)
    assert caught.value.field == "prompt.chat.messages[2].tool_calls"
    thinking = ChatMessage("assistant", "4", reasoning_content="2 + 2")
    with pytest.raises(InvalidRequestError, match="never reads reasoning_content") as caught:
        ChatTemplate(templated(QWEN2_5)).render(dicts(EPISODE[1], thinking), field=FIELD)
    assert caught.value.field == "prompt.chat.messages[1].reasoning_content"


def test_thoughts_reach_a_template_that_has_another_name_for_them() -> None:
    template = ChatTemplate(templated("{% for m in messages %}{{ m['thinking'] }}{% endfor %}"))
    assert template.render(dicts(ChatMessage("assistant", "4", reasoning_content="2 + 2")), field=FIELD) == "2 + 2"


def test_a_list_of_many_variables_and_a_long_name_are_shortened() -> None:
    source = "".join(f"{{{{ v{index:03} }}}}" for index in range(300))
    with pytest.raises(InvalidRequestError, match="'v015' and 284 more") as caught:
        ChatTemplate(templated(source)).render(dicts(*EPISODE[:1]), arguments={"x" * 100_000: 1}, field=FIELD)
    assert len(str(caught.value)) < 1000


def test_a_template_that_is_none_is_told_with_tools_too() -> None:
    with pytest.raises(InvalidRequestError, match="refuses these messages: ") as caught:
        ChatTemplate(templated("{% for %}")).render(dicts(*EPISODE[:2]), tools=[WEATHER], field=FIELD)
    assert caught.value.field == FIELD
