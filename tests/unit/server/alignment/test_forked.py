from __future__ import annotations

import os

import pytest
from preceptor_server.alignment.forked import Forked


def test_answer_comes_from_another_process_and_leaves_this_one_unchanged() -> None:
    seen: list[int] = []

    def compute() -> str:
        seen.append(1)
        return f"{os.getpid()} {len(seen)}"

    pid, count = Forked(compute).result().split()
    assert int(pid) != os.getpid()
    assert count == "1"
    assert seen == []


def test_copy_that_dies_is_told_and_does_not_run_on() -> None:
    def fail() -> str:
        raise ValueError("in the copy")

    with pytest.raises(MemoryError, match="ended early"):
        Forked(fail).result()
