"""The teachers that are put under load, as arguments of the server: nothing else knows how engines are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.service.trees import Tree

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


Teacher = Fake | TinyLlama


def command_of(teacher: Teacher, tree: Tree) -> tuple[str, ...]:
    """Module and arguments after `python -m`."""
    if isinstance(teacher, TinyLlama):
        return ("preceptor_server.cli", "--engine.kind", "hf", "--engine.model", str(teacher.written()))
    settings = {
        "seconds-per-token": f"{teacher.seconds_per_token:.9f}",
        "vocabulary-size": str(teacher.vocabulary_size),
    }
    arguments = ["--engine.max-model-len", str(teacher.max_model_len)]
    for name, value in settings.items():
        arguments += [f"--engine.fake-{name}", value]
    # TODO(fakes): once the fake engine stands in the tests, its kind is "package.module:Name" of a class there.
    assert tree.has_server_module("engines/fake"), f"{tree.name} has no fake engine that this bench knows"
    module = "bench.service.marked_server" if teacher.raises_on_bad_token else "preceptor_server.cli"
    return (module, "--engine.kind", "fake", *arguments)
