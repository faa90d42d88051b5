"""What vLLM's processes find in their environment."""

from __future__ import annotations

import os

import pytest
from preceptor_server.engines.config import VllmConfig
from preceptor_server.engines.vllm import starting

TRITON = "TRITON_F32_DEFAULT"


def prepared(monkeypatch: pytest.MonkeyPatch, *, dtype: str, given: str | None = None) -> str | None:
    """What Triton is told in the end; `given` is what the user told it."""
    for name in ("VLLM_LOGGING_STREAM", "VLLM_NO_USAGE_STATS", TRITON):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv(TRITON, given)
    starting._set_environment(VllmConfig.model_validate({"model": "m", "dtype": dtype}))
    return os.environ.get(TRITON)


def test_fp32_is_not_tf32_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(monkeypatch, dtype="float32") == "ieee"
    assert prepared(monkeypatch, dtype="float32", given="tf32") == "tf32"
    assert prepared(monkeypatch, dtype="bfloat16") is None
