"""Identifies weights on disk without reading all of them: a model of 700 GB must not take an hour to start."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.json")
_NOT_NUMBERS = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
_WHOLE_BYTES = 1 << 30
"""A file of up to this size is read whole."""
_NUM_SAMPLES, _SAMPLE_BYTES = 1024, 1 << 16
"""Of a larger file: as many pieces, spread evenly, and its size. Training changes every tensor."""


def revision_of_folder(folder: Path, *, uses: str) -> str:
    """First 16 hex digits of a SHA-256 over the weights and configs in `folder`, and over how they are used."""
    digest = hashlib.sha256(uses.encode())
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)} - {folder / n for n in _NOT_NUMBERS})
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        _update(digest, file)
    return digest.hexdigest()[:16]


def _update(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE_BYTES:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
            return
        for index in range(_NUM_SAMPLES):
            stream.seek(index * (size - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
