"""Measures one registration in a process of its own, whose memory nothing else has filled (Linux).

python -m bench.registering STUDENT.json STUDENT_LOGITS TEACHER.json TEACHER_LOGITS
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from preceptor.fingerprint import tokenizer_id
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.pairing import read_teacher
from preceptor_server.alignment.registry import AlignmentRegistry
from preceptor_server.config import LimitsConfig

from bench.vocabularies import Vocabulary

NUM_REGISTRATIONS = 3
OWN_CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def measure_registration(student: Vocabulary, teacher: Vocabulary, folder: Path) -> dict[str, float]:
    """Seconds (median), and by how many MB a server, and the child at its largest, grew; in a process of its own, whose
    memory nothing else has filled."""
    sides = {"student": student, "teacher": teacher}
    for name, side in sides.items():
        (folder / name).write_text(side.tokenizer.json, encoding="utf-8")
    arguments = [str(folder / "student"), str(student.size), str(folder / "teacher"), str(teacher.size)]
    command = [sys.executable, "-m", "bench.registering", *arguments]
    figures: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return figures


async def register(student_json: str, student_size: str, teacher_json: str, teacher_size: str) -> dict[str, float]:
    """What that process does. The arguments are files, and numbers of logits."""
    teacher = read_teacher(Path(teacher_json).read_text(encoding="utf-8"), None, vocabulary_size=int(teacher_size))
    data = Path(student_json).read_bytes()
    registration = Registration(
        tokenizer_id=tokenizer_id(data.decode(), None), tokenizer_json=data, vocabulary_size=int(student_size)
    )
    ctypes.CDLL(None).malloc_trim(0)
    seconds, grown, children = [], [], [0]
    for _ in range(NUM_REGISTRATIONS):
        registry = AlignmentRegistry(teacher, own_tokenizer_id="another", teacher_end_ids=(), limits=LimitsConfig())
        before = resident_bytes()
        highest = [before]
        watch = asyncio.create_task(watch_memory(highest, children))
        started = time.perf_counter()
        await registry.register(registration)
        seconds.append(time.perf_counter() - started)
        watch.cancel()
        grown.append((max(highest) - before) / 1e6)
        await registry.close()
    return {"seconds": statistics.median(seconds), "server_mb": max(grown), "child_mb": max(children) / 1e6}


async def watch_memory(highest: list[int], children: list[int]) -> None:
    while True:
        highest.append(resident_bytes())
        children += [peak_bytes(int(pid)) for pid in OWN_CHILDREN.read_text().split()]
        await asyncio.sleep(0.005)


def peak_bytes(pid: int) -> int:
    """The most that a running process has held since it began to run its own program (Linux)."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        found = None
    return int(found[1]) * 1024 if found else 0


def resident_bytes() -> int:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(register(*sys.argv[1:]))))
