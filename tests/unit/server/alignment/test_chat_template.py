"""A template is a program: whatever it does with a caller's messages is told, and the server goes on."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.alignment import chat_template
from preceptor_server.alignment.chat_template import ChatTemplate
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer, load_tokenizer
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.errors import InvalidRequestError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import prepare_call
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from tests.unit.server.hosting import hosted_teacher

MESSAGES = [{"role": "user", "content": "hi"}]
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
FAULTS = {
    "a TypeError": ("{{ messages + 1 }}", r"fails on these messages with TypeError: can only concatenate list"),
    "a ZeroDivisionError": ("{{ 1 / (messages | length - 1) }}", r"with ZeroDivisionError: division by zero"),
    "a KeyError": ("{{ '{a}'.format(b=1) }}", r"with KeyError: 'a'"),
    "an AttributeError of a filter": ("{{ messages | dictsort }}", r"with AttributeError: "),
    "a ValueError": ("{{ messages[0].content.index('z') }}", r"with ValueError: substring not found"),
    "an OverflowError": ("{{ 'x' * (10 ** 30) }}", r"with OverflowError: "),
    "a RecursionError": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"with RecursionError: "),
    "an undefined name": ("{{ nothing.at_all }}", r"refuses these messages: 'nothing' is undefined"),
    "what the sandbox forbids": ("{{ messages.append(1) }}", r"refuses these messages: .*unsafe"),
    "a range too large": ("{{ range(1000000) }}", r"with OverflowError: Range too big"),
    "no template": ("{% for %}", r"refuses these messages: "),
    "its own words": ("{{ raise_exception('roles must alternate') }}", r"refuses these messages: roles must alternate"),
}


def templated(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def chat() -> pb.ScoreRequest:
    prompt = pb.Prompt(chat=pb.ChatPrompt(messages=[pb.ChatMessage(role="user", content="hi")]))
    response = pb.Response(ids=pb.TokenIds(data=b"\x05\x00", dtype=pb.TOKEN_DTYPE_U16))
    return pb.ScoreRequest(prompt=prompt, responses=[response], top_k=2, temperature=1)


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_template_fails_with_names_the_field_and_its_words(fault: str) -> None:
    template, words = FAULTS[fault]
    with pytest.raises(InvalidRequestError, match=rf"^prompt\.chat: the teacher's chat template .*{words}") as caught:
        TeacherTokenizer(templated(template)).render(MESSAGES, field="prompt.chat")
    assert caught.value.field == "prompt.chat"


def test_a_long_complaint_is_shortened() -> None:
    template = ChatTemplate(templated("{{ raise_exception('x' * 100000) }}"))
    with pytest.raises(InvalidRequestError) as caught:
        template.render(MESSAGES, field="chat")
    assert len(str(caught.value)) < 1000


def test_a_template_that_never_ends_is_ended() -> None:
    template = ChatTemplate(templated(ENDLESS), max_seconds=0.2)
    before, started = sys.gettrace(), time.monotonic()
    with pytest.raises(InvalidRequestError, match=r"chat: the teacher's chat template needs more than 0\.2 s"):
        template.render(MESSAGES, field="chat")
    # Generous: the machine is shared. To its end it would take minutes.
    assert time.monotonic() - started < 20
    assert sys.gettrace() is before


def test_a_template_that_writes_too_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 1000)
    template = ChatTemplate(templated("{{ 'x' * 1001 }}"))
    with pytest.raises(InvalidRequestError, match=r"chat: the teacher's chat template writes 1,001 characters"):
        template.render(MESSAGES, field="chat")


def test_what_a_bounded_template_writes_is_what_transformers_writes() -> None:
    tokenizer = tiny_tokenizer()
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(tokenizer).render(MESSAGES, field="chat") == expected


async def test_other_calls_go_on_while_a_template_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.5)
    source = "{% if messages[0].content == 'hi' %}" + ENDLESS + "{% endif %}"
    teacher = hosted_teacher(tokenizer=TeacherTokenizer(templated(source)))
    stuck = asyncio.create_task(prepare_call(decode_score_request(chat()), teacher))
    turns = 0
    while not stuck.done():
        await asyncio.sleep(0.02)
        turns += 1
    with pytest.raises(InvalidRequestError, match=r"prompt\.chat\.messages: .*needs more than"):
        await stuck
    assert turns > 5, "the event loop had its turns meanwhile"


@pytest.fixture
def named(tmp_path: Path) -> Path:
    templated({"default": "<|im_start|>{{ messages[0].content }}", "rag": "{{ documents }}"}).save_pretrained(tmp_path)
    return tmp_path


def test_of_several_named_templates_the_default_one_is_used(named: Path) -> None:
    tokenizer = load_tokenizer(str(named), gguf_file=None, trust_remote_code=False)
    alone = TeacherTokenizer(templated("<|im_start|>{{ messages[0].content }}"))
    assert tokenizer.template_names == ("default", "rag")
    assert tokenizer.render(MESSAGES, field="chat").tolist() == alone.render(MESSAGES, field="chat").tolist()
    assert tokenizer.tokenizer_id == alone.tokenizer_id


def test_several_templates_without_a_default_are_refused_by_name() -> None:
    tokenizer = TeacherTokenizer(templated({"rag": "a", "tool_use": "b"}))
    assert not tokenizer.has_chat_template
    with pytest.raises(
        InvalidRequestError, match=r"chat: this teacher has the chat templates 'rag', 'tool_use' and none"
    ):
        tokenizer.render(MESSAGES, field="chat")


async def test_a_template_that_fails_once_serves_the_next() -> None:
    source = "{{ 1 / (messages[0].content | length - 2) }}"
    teacher: HostedTeacher = hosted_teacher(tokenizer=TeacherTokenizer(templated(source)))
    with pytest.raises(InvalidRequestError, match="ZeroDivisionError"):
        await prepare_call(decode_score_request(chat()), teacher)
    longer = chat()
    longer.prompt.chat.messages[0].content = "four"
    call = await prepare_call(decode_score_request(longer), teacher)
    assert call.prompt_ids_P.tolist() == tiny_tokenizer()("0.5", add_special_tokens=False)["input_ids"]
