"""The library stays light: importing it pulls in none of the heavy packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "vllm", "fastapi", "tokenizers", "preceptor_server")


@pytest.mark.parametrize(
    "module", ["preceptor_client", "preceptor_client.commands.score", "preceptor_client.commands.doctor"]
)
def test_import_pulls_in_no_heavy_package(module: str) -> None:
    program = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
