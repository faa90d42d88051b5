from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from preceptor_server.engines.vllm.failures import startup_error
from preceptor_server.engines.vllm.process_log import ProcessLog

GENERIC = RuntimeError("Engine core initialization failed. See root cause above.")


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("(EngineCore pid=1) ValueError: No available memory for the cache blocks.", "kv_cache_memory_bytes"),
        (
            "ERROR x.py:1 ValueError: To serve at least one request with the model's max seq len (8192), (0.2 GiB KV "
            "cache is needed, which is larger than the available KV cache memory (0.1 GiB).",
            "engine.max_model_len",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "gpu_memory_utilization"),
        (
            "ValueError: Free memory on device cuda:0 (128.45/139.8 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 128.62 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
            "processes.",
            "gpu_memory_utilization",
        ),
        (
            "ValidationError: 1 validation error for ParallelConfig Value error, World size (2) is larger than the "
            "number of available GPUs (1) in this node.",
            "tensor_parallel_size",
        ),
        ("ERROR core.py:1510]     assert inputs.dtype in [torch.float16, torch.bfloat16]", "engine.dtype=bfloat16"),
        ("pydantic ValueError: Model architectures ['Foo'] are not supported for now.", "engine.kind=hf"),
        ("ValueError: A head_dtype different from the model dtype is only supported for", "engine.head_dtype=model"),
    ],
)
def test_the_reason_that_a_child_wrote_becomes_the_setting_to_change(line: str, setting: str) -> None:
    lines = ["INFO starting", line, "RuntimeError: Engine core initialization failed."]
    message = str(startup_error(GENERIC, lines))
    assert setting in message
    assert line.split("Error: ", 1)[-1][-20:] in message


def test_an_unknown_reason_is_told_as_it_is() -> None:
    assert str(startup_error(GENERIC, ["KeyError: 'lm_head'"])) == "vLLM did not start: KeyError: 'lm_head'"
    assert "Engine core initialization failed" in str(startup_error(GENERIC, []))


def test_lines_of_children_are_kept_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    log = ProcessLog()
    with log.capturing():
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, time; sys.stderr.write('one\\n'); time.sleep(0.2); sys.stderr.write('two\\n')",
            ]
        )
    os.write(2, b"the parent's own\n")
    assert child.wait(30) == 0
    deadline = time.monotonic() + 30
    while log.lines != ["one", "two"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.lines == ["one", "two"]
    assert sorted(capfd.readouterr().err.splitlines()) == ["one", "the parent's own", "two"]
