"""Prompts of every kind: small ones are read at once, large ones never in the event loop, and all get the same ids."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from preceptor.wire import TokenArray
from preceptor_server.alignment.pairing import pair, read_teacher
from preceptor_server.alignment.prompt_reader import INLINE_CHARACTERS, INLINE_IDS, INLINE_MESSAGES, PromptReader
from preceptor_server.alignment.prompts import read_prompt
from preceptor_server.alignment.render_process import RenderProcess
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.sent_chat import MAX_JSON_BYTES, MAX_MESSAGES, SentChat, SentMessage, read_chat
from preceptor_server.alignment.specials import align
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.tokenizer_file import parse_tokenizer
from preceptor_server.alignment.types import Alignment
from preceptor_server.alignment.workbench import Turn, Workbench
from preceptor_server.errors import DeadlinePassedError, InvalidRequestError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer
from tests.unit.server.alignment import tokenizers_for_tests as made
from tests.unit.server.alignment.chat_templates import QWEN3
from tests.unit.server.alignment.long_texts import TEXTS

ROOM = 1_000_000


class Spied(TeacherTokenizer):
    """Notes in which threads it encodes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.threads: list[str] = []
        super().__init__(tokenizer)

    def _encode_piece(self, text: str, *, field: str) -> TokenArray:
        self.threads.append(threading.current_thread().name)
        return super()._encode_piece(text, field=field)


class Renders:
    """In place of the process: renders in the thread that asks, and notes which one."""

    def __init__(self, tokenizer: TeacherTokenizer) -> None:
        self._tokenizer = tokenizer
        self.threads: list[str] = []

    def render(self, chat: SentChat, *, max_bytes: int | None, field: str, turn: Turn) -> str:
        self.threads.append(threading.current_thread().name)
        turn.check()
        read = read_chat(chat, field=field)
        messages = [message.as_template_message() for message in read.messages]
        return self._tokenizer.template.render(
            messages, tools=read.tools, arguments=read.template_arguments, field=f"{field}.messages"
        )

    def start(self) -> None: ...

    def close(self) -> None: ...


def qwen3() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = QWEN3
    return tokenizer


@pytest.fixture
def tokenizer() -> Spied:
    return Spied(qwen3())


@pytest.fixture
def workbench() -> Iterator[Workbench]:
    made_bench = Workbench()
    yield made_bench
    made_bench.close()


@pytest.fixture
def renders(tokenizer: Spied) -> Renders:
    return Renders(tokenizer)


@pytest.fixture
def reader(tokenizer: Spied, workbench: Workbench, renders: Renders) -> PromptReader:
    return PromptReader(tokenizer, workbench=workbench, renderer=renders)


async def read_text(reader: PromptReader, text: str, *, room_tokens: int = ROOM) -> list[int]:
    ids = await reader.read_text(text, add_special_tokens=True, room_tokens=room_tokens, caller_key="a")
    result: list[int] = ids.tolist()
    return result


async def test_a_small_text_is_read_at_once_and_a_large_one_never_in_the_event_loop(
    reader: PromptReader, tokenizer: Spied
) -> None:
    await read_text(reader, "a" * INLINE_CHARACTERS)
    assert tokenizer.threads == ["MainThread"]
    tokenizer.threads.clear()
    await read_text(reader, "words " * 50_000)
    assert len(tokenizer.threads) > 2
    assert all(name.startswith("workbench") for name in tokenizer.threads)


@settings(max_examples=40, deadline=None)
@given(text=TEXTS.filter(bool))
def test_a_text_has_the_same_ids_whichever_way_it_is_read(text: str) -> None:
    spied, bench = Spied(qwen3()), Workbench()
    reader = PromptReader(spied, workbench=bench, renderer=Renders(spied))
    long = text + " word" * (INLINE_CHARACTERS // 4)
    try:
        for one in (text, long):
            assert asyncio.run(read_text(reader, one)) == tiny_tokenizer()(one)["input_ids"]
    finally:
        bench.close()
    assert spied.threads[-1].startswith("workbench")


@pytest.mark.parametrize("text", ["a\ud83d", "word \ud83d " * 5000])
async def test_half_of_a_surrogate_pair_is_told_by_field(reader: PromptReader, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^prompt\.text\.text: holds half of a surrogate pair"):
        await read_text(reader, text)


async def test_an_empty_text_is_told(reader: PromptReader) -> None:
    with pytest.raises(InvalidRequestError, match=r"^prompt\.text\.text: the prompt is empty"):
        await read_text(reader, "")


async def test_a_text_far_too_long_is_neither_queued_nor_tokenized(reader: PromptReader, tokenizer: Spied) -> None:
    with pytest.raises(InvalidRequestError, match="than the 500 that there is room for") as caught:
        await read_text(reader, "word " * 1_000_000, room_tokens=500)
    assert caught.value.reason == "BEYOND_CONTEXT"
    assert tokenizer.threads == []


async def test_a_text_of_just_the_room_is_read(reader: PromptReader) -> None:
    text = "9" * 20_000
    assert len(await read_text(reader, text, room_tokens=20_000)) == 20_000
    with pytest.raises(InvalidRequestError, match="than the 19999 that"):
        await read_text(reader, text, room_tokens=19_999)


async def test_a_deadline_ends_a_long_text(reader: PromptReader) -> None:
    with pytest.raises(DeadlinePassedError):
        await reader.read_text(
            "word " * 2_000_000, add_special_tokens=True, room_tokens=10**9, caller_key="a", timeout_seconds=0.001
        )


def chat_of(num_messages: int, *, content: str = "hi", **more: Any) -> SentChat:
    return SentChat(messages=tuple(SentMessage(role="user", content=content) for _ in range(num_messages)), **more)


async def read(reader: PromptReader, chat: SentChat, *, room_tokens: int = ROOM) -> list[int]:
    ids: list[int] = (await reader.read_chat(chat, room_tokens=room_tokens, caller_key="a")).tolist()
    return ids


def expected(chat: SentChat) -> list[int]:
    decoded = read_chat(chat)
    tokenizer: Any = qwen3()  # Any: the library's types are narrower than what it takes
    text = tokenizer.apply_chat_template(
        [message.as_template_message() for message in decoded.messages],
        tools=list(decoded.tools) or None,
        tokenize=False,
        add_generation_prompt=True,
        **decoded.template_arguments,
    )
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


THINKS = '{"enable_thinking": false}'
TOOL = json.dumps({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
CHATS = {
    "small": chat_of(3, template_arguments=THINKS),
    "with a tool": chat_of(1, tools=(TOOL,)),
    "many messages": chat_of(INLINE_MESSAGES + 1, template_arguments=THINKS),
    "much text": chat_of(2, content="word \u00e9\x00\U0001f600 " * 5000, tools=(TOOL,)),
}


@pytest.mark.parametrize("name", CHATS)
async def test_a_chat_has_the_ids_that_transformers_gives_it(name: str, reader: PromptReader, renders: Renders) -> None:
    assert await read(reader, CHATS[name]) == expected(CHATS[name])
    assert bool(renders.threads) is (name in ("many messages", "much text"))
    assert all(thread.startswith("workbench") for thread in renders.threads)


async def test_the_process_renders_what_transformers_does_and_refuses_in_the_same_words(
    tokenizer: Spied, workbench: Workbench
) -> None:
    reader = PromptReader(tokenizer, workbench=workbench)
    try:
        await reader.start()
        for chat in CHATS.values():
            assert await read(reader, chat) == expected(chat)
        torn = chat_of(INLINE_MESSAGES + 1, tools=(TOOL, "{"))
        with pytest.raises(InvalidRequestError, match=r"^prompt\.chat\.tools\[1\]: not JSON: "):
            await read(reader, torn)
        unread = chat_of(INLINE_MESSAGES + 1, template_arguments='{"unread": 1}')
        with pytest.raises(InvalidRequestError, match=r"^prompt\.chat\.template_arguments: 'unread' is never read"):
            await read(reader, unread)
        half = chat_of(INLINE_MESSAGES + 1, content="\ud83d")
        with pytest.raises(InvalidRequestError, match=r"^prompt\.chat\.messages: holds half of a surrogate pair"):
            await read(reader, half)
    finally:
        reader.close()


ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "endless": ("{% if n %}" + ENDLESS + "{% endif %}ok", "needs more than 0.3 s"),
    "in a library": (
        "{% if n %}{{ 'x' * (n * 10 ** 10) }}{% endif %}ok",
        r"fails on these template arguments with MemoryError",
    ),
    "too long": ("{% if n %}{{ 'x' * (n * 10 ** 7) }}{% endif %}ok", "than the 1000 that there is room for"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_template_that_a_number_makes_slow_or_large_is_told_and_serves_the_next(
    name: str, workbench: Workbench
) -> None:
    source, words = HOSTILE[name]
    own = tiny_tokenizer()
    own.chat_template = source
    renderer = RenderProcess(own, max_seconds=0.3)
    reader = PromptReader(TeacherTokenizer(own), workbench=workbench, renderer=renderer)
    try:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await read(reader, chat_of(1, template_arguments='{"n": 1}'), room_tokens=1000)
        assert caught.value.field in ("prompt.chat.messages", "prompt.chat.template_arguments")
        assert len(await read(reader, chat_of(1, template_arguments='{"n": 0}'), room_tokens=1000)) == 2
    finally:
        reader.close()


async def test_a_deadline_ends_the_process_and_the_next_chat_has_another(workbench: Workbench) -> None:
    own = tiny_tokenizer()
    own.chat_template = "{% if n %}" + ENDLESS + "{% endif %}ok"
    reader = PromptReader(TeacherTokenizer(own), workbench=workbench)
    try:
        await reader.start()
        chat = chat_of(1, template_arguments='{"n": 1}')
        with pytest.raises(DeadlinePassedError):
            await reader.read_chat(chat, room_tokens=99, caller_key="a", timeout_seconds=0.3)
        assert len(await read(reader, chat_of(1, template_arguments='{"n": 0}'))) == 2
    finally:
        reader.close()


async def test_a_chat_beyond_any_limit_is_refused_unread(
    reader: PromptReader, tokenizer: Spied, renders: Renders
) -> None:
    many_tools = chat_of(1, tools=(" " * (MAX_JSON_BYTES // 4),) * 5)
    for chat, field, words in (
        (chat_of(MAX_MESSAGES + 1), "messages", "16,385 exceed 16,384 messages"),
        (chat_of(101), "messages", "than the 100 that there is room for"),
        (chat_of(1, content="a" * 10_000), "messages", "than the 100 that there is room for"),
        (many_tools, "tools", r"tools and arguments have 5,242,880 characters of JSON, more than 4,194,304"),
        (chat_of(0), "messages", "the prompt is empty"),
    ):
        with pytest.raises(InvalidRequestError, match=rf"^prompt\.chat\.{field}: .*{words}|{words}"):
            await read(reader, chat, room_tokens=100)
    assert (tokenizer.threads, renders.threads) == ([], [])


@pytest.fixture(scope="module")
def aligned() -> tuple[Alignment, str, Segmenter]:
    """A student with SentencePiece's tokens beside a byte-level teacher."""
    student, teacher_json = made.gemma_like(), made.byte_level()
    teacher = read_teacher(teacher_json, None, vocabulary_size=500)
    pairing = pair(student, parse_tokenizer(student), chat_template=None, vocabulary_size=500, teacher=teacher)
    found = align(
        pairing,
        teacher=teacher,
        tokenizer_id="t",
        end_token_ids=(),
        teacher_end_ids=(),
        special_pairs={"</s>": "<|end|>"},
    )
    return found, teacher_json, Segmenter(teacher_json, teacher.table)


async def test_a_student_s_prompt_is_read_as_before_and_a_large_one_not_in_the_event_loop(
    aligned: tuple[Alignment, str, Segmenter], workbench: Workbench
) -> None:
    alignment, teacher_json, segmenter = aligned
    teacher = Spied(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(teacher_json)))
    reader = PromptReader(teacher, workbench=workbench, segmenter=segmenter)
    library = Tokenizer.from_str(made.gemma_like())
    for text, thread in (("the dog </s> sleeps", None), ("the other dog " * INLINE_IDS, "workbench")):
        ids = np.array(library.encode(text, add_special_tokens=False).ids, np.int64)
        direct = read_prompt(ids, alignment, tokenizer=teacher, segmenter=segmenter, field="x")
        teacher.threads.clear()
        read_ids = await reader.read_student_ids(ids, alignment, room_tokens=len(direct), caller_key="a")
        assert read_ids.tolist() == direct.tolist()
        assert thread is None or all(name.startswith(thread) for name in teacher.threads)
        with pytest.raises(InvalidRequestError, match=r"^prompt\.student_ids: has more of the teacher's tokens"):
            await reader.read_student_ids(ids, alignment, room_tokens=len(direct) - 1, caller_key="a")


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_no_student_s_prompt_that_fits_is_refused(aligned: tuple[Alignment, str, Segmenter], text: str) -> None:
    alignment, teacher_json, segmenter = aligned
    teacher = TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(teacher_json)))
    ids = np.array([5, *Tokenizer.from_str(made.gemma_like()).encode(text, add_special_tokens=False).ids], np.int64)
    try:
        direct = read_prompt(ids, alignment, tokenizer=teacher, segmenter=segmenter, field="x")
    except InvalidRequestError:
        return
    again = read_prompt(ids, alignment, tokenizer=teacher, segmenter=segmenter, field="x", room_tokens=len(direct))
    assert again.tolist() == direct.tolist()
