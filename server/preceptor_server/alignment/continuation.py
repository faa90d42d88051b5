"""Turns a tokenizer into one that writes the middle of a text, losing nothing. Knows no vocabulary.

A tokenizer is made for whole texts: it puts a space in front, folds what looks alike, drops what it deems noise. The
reading of a response needs the bytes as they are, so those steps go, and the steps that choose where to cut stay.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from preceptor_server.alignment.tokenizer_file import Json, load_tokenizer_json
from preceptor_server.errors import InvalidTokenizerError

_SPLITS_THAT_LOSE = frozenset({"WhitespaceSplit", "Whitespace"})
"""They drop the spaces that Metaspace, after them, would write."""


def as_continuation(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Changes `tokenizer` in place; returns the names of the steps that would have changed bytes, in their order."""
    normalizer, lossy = _without_lossy(state_of(tokenizer.normalizer))
    steps = rebuild(normalizer, _without_prefix(state_of(tokenizer.pre_tokenizer)))
    tokenizer.normalizer = steps.normalizer
    tokenizer.pre_tokenizer = steps.pre_tokenizer
    tokenizer.post_processor = None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None
    return lossy


def rebuild(normalizer: Json | None, pre_tokenizer: Json | None) -> Tokenizer:
    """A tokenizer of these steps and no vocabulary: the library makes a step from JSON within a tokenizer only."""
    model: Json = {"type": "BPE", "vocab": {}, "merges": []}
    parts: Json = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "model": model, "added_tokens": []}
    return load_tokenizer_json(json.dumps(parts))


def state_of(step: Any) -> Json | None:  # Any: a step of the library
    """A step as JSON, the way the library writes it."""
    if step is None:
        return None
    state = json.loads(step.__getstate__())
    if not isinstance(state, dict):
        raise InvalidTokenizerError(f"a step of it cannot be written as JSON: {step}")
    return state


def _without_lossy(normalizer: Json | None) -> tuple[Json | None, tuple[str, ...]]:
    kept, lossy = [], []
    for step in flat_steps(normalizer, "normalizers"):
        kind = step.get("type")
        if kind == "ByteLevel" or _is_space_sign(step):
            kept.append(step)
        elif kind != "Prepend":
            lossy.append(str(kind))
    return ({"type": "Sequence", "normalizers": kept} if kept else None), tuple(lossy)


def _is_space_sign(step: Json) -> bool:
    """Whether it writes another character for each space, and changes nothing else."""
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and len(step["content"]) == 1


def _without_prefix(pre_tokenizer: Json | None) -> Json | None:
    steps = flat_steps(pre_tokenizer, "pretokenizers")
    if any(step.get("type") == "Metaspace" for step in steps):
        steps = [step for step in steps if step.get("type") not in _SPLITS_THAT_LOSE]
    kept = [step | _no_prefix(step) for step in steps]
    return {"type": "Sequence", "pretokenizers": kept} if kept else None


def _no_prefix(step: Json) -> Json:
    if step.get("type") == "Metaspace":
        return {"prepend_scheme": "never"} | ({"add_prefix_space": False} if "add_prefix_space" in step else {})
    return {"add_prefix_space": False} if step.get("type") == "ByteLevel" else {}


def flat_steps(step: Json | None, members: str) -> list[Json]:
    """The steps of a sequence of sequences, in order; `members` is what the library calls those of one: "normalizers"
    or "pretokenizers"."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for member in step[members] for inner in flat_steps(member, members)]
