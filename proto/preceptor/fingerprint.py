"""Names a tokenizer by what it does, so that client and server can tell that they mean the same one.

Works on the text of a `tokenizer.json` (Hugging Face tokenizers); needs no tokenizer library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_RUNTIME_STATE = ("truncation", "padding", "version")
"""Parts of a tokenizer.json that are set per call, or by the library, and do not change what a text encodes to."""


def tokenizer_id(tokenizer_json: str, chat_template: str | None) -> str:
    """SHA-256 (hex) of vocabulary, merges, normaliser, pre-tokeniser, added tokens and chat template."""
    return tokenizer_id_of(_parse(tokenizer_json), chat_template)


def tokenizer_id_of(parts: Mapping[str, Any], chat_template: str | None) -> str:  # Any: as in `_parse`
    """The same of a tokenizer.json that is parsed already; of a large one, parsing is half the work."""
    lasting = {name: part for name, part in parts.items() if name not in _RUNTIME_STATE}
    return _sha256({"tokenizer": lasting, "chat_template": chat_template or ""})


def vocabulary_id(tokenizer_json: str) -> str:
    """SHA-256 (hex) of the tokens and their ids alone, added tokens included."""
    parts = _parse(tokenizer_json)
    added = {token["content"]: token["id"] for token in parts.get("added_tokens", [])}
    return _sha256({"vocabulary": parts.get("model", {}).get("vocab"), "added": added})


def _parse(tokenizer_json: str) -> dict[str, Any]:  # Any: the shape of a tokenizer.json is its library's business
    parts = json.loads(tokenizer_json)
    if not isinstance(parts, dict) or "model" not in parts:
        raise ValueError("not a tokenizer.json: it has no 'model'")
    return parts


def _sha256(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
