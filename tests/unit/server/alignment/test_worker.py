"""What a stranger's tokenizer.json can do to the server: be refused with a reason, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preceptor.fingerprint import tokenizer_id
from preceptor.wire import VocabularyRelation
from preceptor_server.alignment import exchange
from preceptor_server.alignment.exchange import ExchangeError, PairingJob
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.pairing import read_teacher
from preceptor_server.alignment.registry import AlignmentRegistry
from preceptor_server.alignment.types import TeacherVocabulary
from preceptor_server.alignment.worker_process import WorkerProcess
from preceptor_server.config import LimitsConfig
from preceptor_server.errors import InvalidTokenizerError

from tests.tiny import CHAT_TEMPLATE, tiny_tokenizer

Parts = dict[str, Any]  # Any: the shape of a tokenizer.json is its library's business

TINY_JSON: str = tiny_tokenizer().backend_tokenizer.to_str()
TEACHER = read_teacher(TINY_JSON, CHAT_TEMPLATE, vocabulary_size=260)
TEACHER_ID = tokenizer_id(TINY_JSON, CHAT_TEMPLATE)
BOUND_SECONDS = 10.0
"""Far above what a refusal takes, and far below the 30 s that a tokenizer may take."""


def handed_over(parts: Parts | str | bytes, **more: Any) -> Registration:  # Any: fields of Registration
    """A tokenizer under its true fingerprint where it has one."""
    text = json.dumps(parts) if isinstance(parts, dict) else parts
    data = text if isinstance(text, bytes) else text.encode()
    name = "f" * 64
    if isinstance(text, str):
        with contextlib.suppress(ValueError, RecursionError):
            name = tokenizer_id(text, None)
    return Registration(**{"tokenizer_id": name, "tokenizer_json": data, **more})


def tiny(change: Callable[[Parts], object] = lambda parts: None) -> Parts:
    """The tiny tokenizer, changed."""
    parts: Parts = json.loads(TINY_JSON)
    change(parts)
    return parts


def registry(*, seconds: float = 30.0, worker: WorkerProcess | None = None) -> AlignmentRegistry:
    limits = LimitsConfig(tokenizer_seconds=seconds, max_tokenizer_bytes=8 << 20)
    return AlignmentRegistry(TEACHER, own_tokenizer_id=TEACHER_ID, teacher_end_ids=(2,), limits=limits, worker=worker)


@pytest.fixture
async def known() -> AsyncIterator[AlignmentRegistry]:
    known = registry()
    yield known
    await known.close()


async def refusal_of(known: AlignmentRegistry, registration: Registration) -> InvalidTokenizerError:
    """The refusal, which came in bounded time; and the registry works after it."""
    started = time.monotonic()
    with pytest.raises(InvalidTokenizerError) as caught:
        await known.register(registration)
    assert time.monotonic() - started < BOUND_SECONDS
    assert await known.register(handed_over(tiny())) is not None
    return caught.value


async def test_a_tokenizer_is_read_in_a_process_of_its_own(known: AlignmentRegistry) -> None:
    def swap(parts: Parts) -> None:
        vocabulary = parts["model"]["vocab"]
        vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]

    swapped = tiny(swap)
    alignment = await known.register(handed_over(swapped, chat_template="", end_token_ids=(2,), vocabulary_size=300))
    assert alignment is not None
    first, second = swapped["model"]["vocab"]["A"], swapped["model"]["vocab"]["B"]
    assert alignment.pairing.relation is VocabularyRelation.PERMUTED
    assert alignment.pairing.student.size == 300
    assert alignment.pairing.student.bytes_of(first) == b"A"
    assert alignment.pairing.teacher_of_student_U[[first, second]].tolist() == [second, first]
    assert alignment.projection_V[[first, second]].tolist() == [second, first]
    assert len(alignment.projection_V) == 260
    assert not alignment.merges_end_tokens
    assert alignment.special_to_teacher == {0: 0, 1: 1, 2: 2}
    assert alignment.pairing.differences == ("chat_template",)


BROKEN: dict[str, Parts | str | bytes] = {
    "nothing but a blank": b" ",
    "not JSON": b"\x00\x01 surely not",
    "JSON cut off": TINY_JSON[: len(TINY_JSON) // 2],
    "not UTF-8": TINY_JSON.encode().replace(b'"A"', b'"\xff"'),
    "UTF-16": TINY_JSON.encode("utf-16"),
    "a list": "[]",
    "a number of a million digits": "9" * 1_000_000,
    "no model": {"added_tokens": []},
    "a model that is a number": {"model": 7},
    "a model of no known kind": tiny(lambda parts: parts["model"].update(type="Telepathy")),
    "nested a million deep": "[" * 1_000_000 + "]" * 1_000_000,
    "objects nested a million deep": '{"model":' * 200_000 + "1" + "}" * 200_000,
    "a merge of tokens that do not exist": tiny(lambda parts: parts["model"].update(merges=["zz yy"])),
    "an id of 4 billion": tiny(lambda parts: parts["model"]["vocab"].update(A=2**32 - 1)),
    "an id below zero": tiny(lambda parts: parts["model"]["vocab"].update(A=-1)),
    "an id of 2**80": tiny(lambda parts: parts["model"]["vocab"].update(A=2**80)),
    "two tokens with one id": tiny(lambda parts: parts["model"]["vocab"].update(A=50, B=50)),
    "ids that are texts": tiny(lambda parts: parts["model"]["vocab"].update(A="50")),
    "an added token without an id": tiny(lambda parts: parts["added_tokens"].append({"content": "<x>"})),
    "added tokens that are no list": tiny(lambda parts: parts.update(added_tokens=7)),
    "a pattern that is none": tiny(
        lambda parts: parts.update(
            pre_tokenizer={"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}
        )
    ),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_no_tokenizer_is_refused(known: AlignmentRegistry, what: str) -> None:
    error = await refusal_of(known, handed_over(BROKEN[what]))
    assert error.field == "tokenizer_json"
    assert error.reason.isupper()
    assert len(str(error)) < 1000


async def test_what_is_not_utf8_is_told_as_that(known: AlignmentRegistry) -> None:
    error = await refusal_of(known, handed_over(BROKEN["not UTF-8"]))
    assert "UTF-8" in str(error)


async def test_more_tokens_than_logits_are_refused(known: AlignmentRegistry) -> None:
    error = await refusal_of(known, handed_over(tiny(), vocabulary_size=100))
    assert "100" in str(error)


async def test_a_fingerprint_of_another_tokenizer_is_refused(known: AlignmentRegistry) -> None:
    error = await refusal_of(known, handed_over(tiny(), tokenizer_id="a" * 64))
    assert (error.field, error.reason) == ("tokenizer_id", "FINGERPRINT_MISMATCH")
    assert tokenizer_id(json.dumps(tiny()), None) in str(error)


async def test_a_fingerprint_of_another_chat_template_is_refused(known: AlignmentRegistry) -> None:
    error = await refusal_of(known, handed_over(tiny(), chat_template="another"))
    assert error.reason == "FINGERPRINT_MISMATCH"


def every_letter_becomes(num_times: int) -> Callable[[Parts], object]:
    """Normalisers in a chain, each of which makes a thousand letters of one."""
    replace = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 1000}
    return lambda parts: parts.update(normalizer={"type": "Sequence", "normalizers": [replace] * num_times})


def splits(long_token: str, *, by: str) -> Callable[[Parts], object]:
    """A token on which a pattern backtracks."""
    split = {"type": "Split", "pattern": {"Regex": by}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

    def change(parts: Parts) -> None:
        parts["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
        parts["model"]["vocab"][long_token] = len(parts["model"]["vocab"])

    return change


def many_merges(num: int) -> Callable[[Parts], object]:
    """a, aa, aaa, ...: the text of the last is as long as all the merges before it."""

    def change(parts: Parts) -> None:
        vocabulary = parts["model"]["vocab"]
        vocabulary.update({"a" * length: 257 + length for length in range(2, num + 2)})
        parts["model"]["merges"] = [["a", "a" * length] for length in range(1, num + 1)]

    return change


def many_added_tokens(num: int) -> Callable[[Parts], object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return lambda parts: parts["added_tokens"].extend(
        {"id": 259 + index, "content": f"x{index}", **flags} for index in range(num)
    )


def repeats_the_text(num_times: int) -> Callable[[Parts], object]:
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    return lambda parts: parts.update(
        post_processor={
            "type": "TemplateProcessing", "single": [piece] * num_times, "pair": [piece], "special_tokens": {}
        }
    )  # fmt: skip


COSTLY = {
    "letters that become a trillion": every_letter_becomes(4),
    "a pattern that backtracks": splits("a" * 60, by="(a+)+$b|(a|aa)+$c"),
    "a pattern that looks far back": splits("a" * 20_000, by=r"(?<=a)(.*)*\1\1X"),
    "merges that grow": many_merges(2500),
    "a token of 3 million letters": lambda parts: parts["model"]["vocab"].update({"a" * 3_000_000: 259}),
    "a text in front of 5 million letters": lambda parts: parts.update(
        normalizer={"type": "Prepend", "prepend": "a" * 5_000_000}
    ),
    "a text repeated a hundred thousand times": repeats_the_text(100_000),
    "twenty thousand added tokens": many_added_tokens(20_000),
    "texts padded to a billion": lambda parts: parts.update(
        padding={
            "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        }
    ),
    "one id of 4 million": lambda parts: parts["model"]["vocab"].update({"aa": 4_000_000}),
}  # fmt: skip


@pytest.mark.parametrize("what", COSTLY)
async def test_what_costs_much_is_read_or_refused_in_bounded_time(what: str) -> None:
    known = registry(seconds=4.0)
    started = time.monotonic()
    with contextlib.suppress(InvalidTokenizerError):
        await known.register(handed_over(tiny(COSTLY[what])))
    assert time.monotonic() - started < BOUND_SECONDS
    assert await known.register(handed_over(tiny())) is not None
    await known.close()


DOES = "from preceptor_server.alignment import worker\ndef does(job):\n  {}\nworker._pair = does\nworker.main()"
"""A worker that does something else in place of pairing."""
PADS = (
    "from tokenizers import Tokenizer, models; t = Tokenizer(models.BPE({{'a': 0}}, [])); "
    "t.enable_padding(length=2**{}); t.encode('a')"
)
"""The library aborts where memory cannot be had, and panics where it could not even be counted."""
FATAL = {
    "has more memory than there is": ("bytearray(5 << 30)", "TOKENIZER_TOO_COSTLY", "4 GiB of memory"),
    "has Rust abort": (PADS.format(40), "TOKENIZER_TOO_COSTLY", "more time or memory"),
    "has Rust panic": (PADS.format(62), "INVALID_TOKENIZER", "PanicException: capacity overflow"),
    "uses up its processor time": (
        "import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "TOKENIZER_TOO_COSTLY", "more time or memory"
    ),
    "overflows the stack": (
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "INVALID_TOKENIZER", "crashes on it (SIGSEGV)"
    ),
    "recurses": ("return does(job)", "INVALID_TOKENIZER", "nested too deeply"),
    "raises": ("raise KeyError('vocab')", "INVALID_TOKENIZER", "KeyError: 'vocab'"),
    "never ends": (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n  while True: pass",
        "TOKENIZER_TOO_COSTLY",
        "more than 0.8 s",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FATAL)
async def test_a_worker_that_dies_becomes_a_refusal(what: str) -> None:
    code, reason, says = FATAL[what]
    before = children()
    seconds = 0.8 if what == "never ends" else 10.0
    with pytest.raises(InvalidTokenizerError) as caught:
        await running(DOES.format(code), seconds=seconds).pair(job())
    assert (caught.value.reason, caught.value.field) == (reason, "tokenizer_json")
    assert says in str(caught.value)
    assert children() == before


def running(script: str, *, seconds: float = 10.0) -> WorkerProcess:
    return WorkerProcess(timeout_seconds=seconds, command=(sys.executable, "-c", script))


async def test_a_worker_that_cannot_start_or_talks_nonsense_is_the_servers_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(ExchangeError, match="status 1"):
        await running("import no_such_module").pair(job())
    assert "no_such_module" in caplog.text
    with pytest.raises(ExchangeError, match="neither"):
        await running("print('hello')").pair(job())


async def test_a_worker_knows_nothing_of_the_servers_environment(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "very secret")
    with caplog.at_level(logging.WARNING), pytest.raises(ExchangeError):
        await running("import os, sys; print(dict(os.environ), file=sys.stderr)").pair(job())
    assert "OPENBLAS_NUM_THREADS" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_cancelling_or_closing_ends_the_worker(how: str) -> None:
    before = children()
    worker = running("import time; time.sleep(60)", seconds=60.0)
    known = registry(worker=worker)
    task = asyncio.create_task(known.register(handed_over(tiny())))
    await until(lambda: children() > before)
    if how == "cancel":
        task.cancel()
    else:
        await known.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: children() == before)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.01)


def children() -> set[str]:
    """Processes that this one started and that still run."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread ended
            found |= set((thread / "children").read_text().split())
    return found


def test_a_worker_imports_little() -> None:
    script = "import preceptor_server.alignment.worker, sys; print(*sys.modules)"
    command = [sys.executable, "-c", script]
    modules = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert {"numpy", "tokenizers"} <= modules
    assert modules & {"torch", "transformers", "grpc", "google.protobuf", "pydantic", "asyncio"} == set()


def test_a_worker_limits_itself() -> None:
    script = (
        "import io, resource as r, sys\n"
        "from preceptor_server.alignment import worker\n"
        "def report(job):\n"
        "    kinds = (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_CORE, r.RLIMIT_FSIZE)\n"
        "    print('said by a library')\n"
        "    return repr([r.getrlimit(kind) for kind in kinds]).encode()\n"
        "worker._answer = report\n"
        "worker.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=exchange.pack_job(job()), capture_output=True, check=True
    )
    assert done.stdout == repr([(4 << 30, 4 << 30), (7, 7), (0, 0), (0, 0)]).encode()
    assert b"said by a library" in done.stderr


def job(teacher: TeacherVocabulary = TEACHER) -> PairingJob:
    return PairingJob(
        tokenizer_id="é" * 3,
        tokenizer_json=TINY_JSON.encode(),
        chat_template="{{ 'é' }}",
        vocabulary_size=300,
        teacher=teacher,
        cpu_seconds=7,
    )


def test_a_job_arrives_as_it_was_packed() -> None:
    sent = job()
    got = exchange.unpack_job(exchange.pack_job(sent))
    for name in ("tokenizer_id", "tokenizer_json", "chat_template", "vocabulary_size", "cpu_seconds"):
        assert getattr(got, name) == getattr(sent, name)
    assert got.teacher.parts == TEACHER.parts
    assert got.teacher.table.special_texts == {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"}
    assert got.teacher.table.blob == TEACHER.table.blob
    for name in ("kinds_V", "offsets_V1"):
        array = getattr(got.teacher.table, name)
        assert array.dtype == getattr(TEACHER.table, name).dtype
        np.testing.assert_array_equal(array, getattr(TEACHER.table, name))


def test_a_refusal_arrives_as_it_was_packed() -> None:
    sent = InvalidTokenizerError("é is wrong", reason="WRONG", field="tokenizer_id")
    with pytest.raises(InvalidTokenizerError) as caught:
        exchange.unpack_pairing(exchange.pack_refusal(sent))
    assert (str(caught.value), caught.value.field, caught.value.reason) == (str(sent), "tokenizer_id", "WRONG")


@pytest.mark.parametrize("data", [b"", b"X", b"P", b"Pnonsense", b"R", b"R{}", b"R7"])
def test_bytes_that_no_worker_writes_are_no_answer(data: bytes) -> None:
    with pytest.raises(ExchangeError):
        exchange.unpack_pairing(data)


def test_an_array_of_objects_is_not_unpickled() -> None:
    stream = io.BytesIO()
    np.savez(stream, header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ExchangeError):
        exchange.unpack_job(stream.getvalue())
