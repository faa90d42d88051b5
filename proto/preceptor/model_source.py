"""Looks at a model's or tokenizer's name before it is loaded: a folder that lacks something is told by what it lacks.

Knows the files that transformers writes, and nothing of what is in them.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Part = Literal["config", "weights", "tokenizer"]

_CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.safetensors.index.json")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
_GGUF_MAGIC = b"GGUF"
_LFS_POINTER = b"version https://git-lfs"
_MAX_SHOWN = 3
_MAX_WORDS = 400
"""Characters of a library's own error."""


class InvalidSourceError(ValueError):
    """A model or tokenizer cannot be loaded by this name; the message names the setting and what to change."""


def check_source(
    name: str,
    *,
    field: str,
    gguf_file: str | None = None,
    gguf_field: str = "",
    tokenizer_field: str = "",
    needs: tuple[Part, ...],
) -> None:
    """Raises InvalidSourceError for a folder that is not there, a file in its place, or a folder without a part that it
    needs. What may be the id of a model on the hub passes. `field` is the setting that holds `name`; the other two,
    where there are any, are those for a GGUF file inside the folder and for a tokenizer elsewhere."""
    path = Path(name).expanduser()
    if path.is_file():
        way_out = f": give its folder, and its name as {gguf_field}" if gguf_field and path.suffix == ".gguf" else ""
        raise InvalidSourceError(f"{field}: {name!r} is a file{way_out or ', and a model is a folder'}")
    if path.is_dir():
        folder = _Folder(path=path, field=field, gguf_field=gguf_field, tokenizer_field=tokenizer_field)
        folder.check_gguf(gguf_file) if gguf_file else folder.check(needs)
    elif name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise InvalidSourceError(f"{field}: no folder {name!r}")


def check_whole(missing: Collection[str], *, name: str, model_class: str, field: str) -> None:
    """Raises InvalidSourceError where a checkpoint lacks weights: transformers draws at random what is missing."""
    if missing:
        first = sorted(missing)[:_MAX_SHOWN]
        shown = ", ".join(first) + (", ..." if len(missing) > len(first) else "")
        raise InvalidSourceError(
            f"{field}: {name!r} lacks {len(missing)} of the weights of {model_class}: {shown}: it may be the "
            "checkpoint of another kind of model, or be incomplete"
        )


def load_error(name: str, error: Exception, *, field: str) -> InvalidSourceError:
    """What a library says of a model that it cannot load, on one line, and where it looked for it."""
    words = " ".join(str(error).split())
    if isinstance(error, struct.error):
        words = f"its GGUF file is damaged or cut short ({words})"
    words = words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]}..."
    if Path(name).expanduser().is_dir():
        return InvalidSourceError(f"{field}: {name!r} cannot be loaded: {words}")
    offline = " while HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
    return InvalidSourceError(
        f"{field}: there is no folder {name!r}, and a model of that name cannot be had from the hub{offline}: {words}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """A folder that is there, and the settings that speak of it."""

    path: Path
    field: str
    gguf_field: str
    tokenizer_field: str

    def check_gguf(self, name: str) -> None:
        if not (self.path / name).is_file():
            there = f"; it holds {', '.join(self._ggufs)}" if self._ggufs else ""
            raise InvalidSourceError(f"{self.gguf_field}: no file {name} in {str(self.path)!r}{there}")
        if wrong := _fault_of_gguf(self.path / name):
            raise InvalidSourceError(f"{self.gguf_field}: {self.path / name} {wrong}")

    def check(self, needs: tuple[Part, ...]) -> None:
        # An adapter of peft names the model that it is for, and where that is.
        is_adapter = self._holds("adapter_config.json")
        if "config" in needs and not (is_adapter or self._holds(_CONFIG)):
            raise self._lacks(_CONFIG, otherwise=", so it is no model")
        if "weights" in needs and not (is_adapter or self._holds(*_WEIGHTS)):
            raise self._lacks("weights, such as model.safetensors")
        if "tokenizer" in needs and not self._holds(*_TOKENIZERS):
            elsewhere = f": set {self.tokenizer_field} to where it is" if self.tokenizer_field else ""
            raise self._lacks("tokenizer, such as tokenizer.json", otherwise=elsewhere)
        if "weights" in needs:
            for file in sorted(self.path.glob("*.safetensors")):
                if wrong := _fault_of_safetensors(file):
                    raise InvalidSourceError(f"{self.field}: {file} {wrong}")

    @property
    def _ggufs(self) -> list[str]:
        return sorted(file.name for file in self.path.glob("*.gguf"))

    def _holds(self, *patterns: str) -> bool:
        return any(file for pattern in patterns for file in self.path.glob(pattern))

    def _lacks(self, what: str, *, otherwise: str = "") -> InvalidSourceError:
        if self.gguf_field and self._ggufs:
            otherwise = f", but {self._ggufs[0]}: set {self.gguf_field}={self._ggufs[0]}"
        return InvalidSourceError(f"{self.field}: folder {str(self.path)!r} holds no {what}{otherwise}")


def _fault_of_gguf(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        return "is a pointer of Git LFS and not the weights: run git lfs pull there"
    return "" if start.startswith(_GGUF_MAGIC) else "is no GGUF file"


def _fault_of_safetensors(file: Path) -> str:
    """Its header says how long it must be: eight bytes of a length, so many of JSON, then the tensors."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if _LFS_POINTER.startswith(start) and start:
            return "is a pointer of Git LFS and not the weights: run git lfs pull there"
        num_header = int.from_bytes(start, "little")
        if len(start) < 8 or num_header > size - 8:
            return f"is cut short, or no file of safetensors: it has {size} bytes; copy or download it again"
        try:
            tensors = json.loads(opened.read(num_header))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "is no file of safetensors: its header is not JSON"
    expected = 8 + num_header + max(ends, default=0)
    if size != expected:
        return f"has {size} bytes, and its header speaks of {expected}: copy or download it again"
    return ""
