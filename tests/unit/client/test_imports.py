"""The library stays light: importing it pulls in none of the heavy packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "fastapi", "tokenizers", "httpx", "preceptor_server")
COMMANDS = ("score", "doctor", "tail", "weights")


@pytest.mark.parametrize("module", ["preceptor_client", *(f"preceptor_client.commands.{name}" for name in COMMANDS)])
def test_import_pulls_in_no_heavy_package(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
