"""Digests of the parts of a tokenizer that decide where it cuts and how a chat reads. Knows nothing of vocabularies."""

# The library writes one and the same part in several ways (merges as pairs or as text, fields left out where they have
# their default), so a part is brought into one form before it is digested.

from __future__ import annotations

import hashlib
import json

from preceptor_server.alignment.continuation import rebuild, state_of
from preceptor_server.alignment.tokenizer_file import Json, objects_of, parse_tokenizer, part_of, text_of
from preceptor_server.errors import InvalidTokenizerError

_FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")


def tokenizer_parts(tokenizer: str | Json, chat_template: str | None) -> dict[str, str]:
    """SHA-256 (hex) of each part that `Pairing.differences` names, of a tokenizer.json or of one that is parsed."""
    parts = parse_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    steps = rebuild(part_of(parts, "normalizer"), part_of(parts, "pre_tokenizer"))
    return {
        "merges": _digest_merges(part_of(parts, "model") or {}),
        "normalizer": _digest(state_of(steps.normalizer)),
        "pre_tokenizer": _digest(_without_offsets(state_of(steps.pre_tokenizer))),
        "added_tokens": _digest(_added_tokens(parts)),
        "chat_template": _digest(chat_template or ""),
    }


def _digest_merges(model: Json) -> str:
    """Of what joins pieces into tokens: the ordered merges of BPE, the scores of Unigram. Ids do not matter to it."""
    merges, vocabulary = model.get("merges"), model.get("vocab")
    if merges is None and isinstance(vocabulary, list):
        merges = sorted(json.dumps(entry) for entry in vocabulary)
    try:
        merges = merges or ()
        if str in set(map(type, merges)):
            merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        text = "\1".join(map("\0".join, merges)).encode()
    except (TypeError, UnicodeEncodeError) as error:
        raise InvalidTokenizerError("its merges are not pairs of tokens") from error
    options = [model.get("type", "BPE"), bool(model.get("ignore_merges")), bool(model.get("byte_fallback"))]
    return hashlib.sha256(json.dumps(options).encode() + text).hexdigest()


def _added_tokens(parts: Json) -> list[list[object]]:
    tokens = [
        [text_of(added, "content"), *(added.get(flag) is True for flag in _FLAGS)]
        for added in objects_of(parts, "added_tokens")
    ]
    return sorted(tokens, key=str)


def _without_offsets(pre_tokenizer: Json | None) -> Json | None:
    """Without a field that moves character offsets, not cuts."""
    if pre_tokenizer is None:
        return None
    members = pre_tokenizer.get("pretokenizers")
    if members is not None:
        return {"type": "Sequence", "pretokenizers": [_without_offsets(member) for member in members]}
    return {name: value for name, value in pre_tokenizer.items() if name != "trim_offsets"}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
