"""Small tokenizers of every family, made on the spot, as the text of a tokenizer.json."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps there",
    "def add(a, b):\n    return a + b  # adds\n\n\ndef sub(a, b):\n    return a - b\n",
    "12 + 345 = 357; 1,000 is more than 999. caf\u00e9 na\u00efve \u4f60\u597d \u4e16\u754c \U0001f600",
    "the other brothers bother the mother   in the  weather\t\twith feathers",
] * 8
SPECIALS = ["<unk>", "<s>", "</s>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
ALPHABET_OF_BYTES = {0xD8: "\u00d8", 0xD9: "\u00d9", 0xE0: "\u00e0"}
"""How a byte-level vocabulary writes some of them: as the Latin-1 of the same number."""

Parts = dict[str, Any]  # Any: a tokenizer.json


def with_parts(tokenizer_json: str, **parts: object) -> str:
    return json.dumps(json.loads(tokenizer_json) | parts)


def added(token_id: int, content: str, *, special: bool) -> Parts:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


@cache
def byte_level(*, vocabulary_size: int = 400, specials: tuple[str, ...] = ("<|end|>",)) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=list(specials), initial_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def with_prefix_space() -> str:
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return with_parts(byte_level(), pre_tokenizer=pre_tokenizer, post_processor=pre_tokenizer)


@cache
def with_nfc() -> str:
    """As Qwen's: a pattern, then bytes, and a normaliser that changes bytes."""
    tokenizer = Tokenizer.from_str(byte_level(vocabulary_size=360))
    tokenizer.normalizer = normalizers.NFC()
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Split(pattern, "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    return tokenizer.to_str()


@cache
def with_extra_specials() -> str:
    tokenizer = Tokenizer.from_str(byte_level())
    tokenizer.add_special_tokens(["<|extra|>"])
    tokenizer.add_tokens(["<think>"])
    return tokenizer.to_str()


@cache
def permuted(tokenizer_json: str, *, seed: int = 0) -> str:
    """The same tokens under other ids."""
    parts = json.loads(tokenizer_json)
    old = sorted({*parts["model"]["vocab"].values(), *(token["id"] for token in parts["added_tokens"])})
    new = old[:]
    random.Random(seed).shuffle(new)
    renamed = dict(zip(old, new, strict=True))
    parts["model"]["vocab"] = {token: renamed[i] for token, i in parts["model"]["vocab"].items()}
    for token in parts["added_tokens"]:
        token["id"] = renamed[token["id"]]
    parts["added_tokens"].sort(key=lambda token: token["id"])
    return json.dumps(parts)


@cache
def gemma_like() -> str:
    """SentencePiece's BPE with a token for every byte; the space is a character of its own."""
    return _sentencepiece_bpe(normalizers.Replace(" ", "\u2581"), strip=False)


@cache
def llama2_like() -> str:
    """The same with a space put in front of every text, and taken away when decoding."""
    put_in_front = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    return _sentencepiece_bpe(normalizers.Sequence(put_in_front), strip=True)


def _sentencepiece_bpe(normalizer: Any, *, strip: bool) -> str:  # Any: the library's types have no common name
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    parts = json.loads(trained.to_str())
    tokens = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].__getitem__)
    # Specials, bytes, pieces: the order of SentencePiece.
    ordered = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *tokens[len(SPECIALS) :]]
    vocabulary = {token: index for index, token in enumerate(ordered)}
    parts["model"] |= {"vocab": vocabulary, "byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(parts | {"pre_tokenizer": None}))
    tokenizer.normalizer = normalizer
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    return tokenizer.to_str()


@cache
def unigram() -> str:
    """T5's kind: spaces dropped, and written again by Metaspace; no bytes to fall back on."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    metaspace = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def metaspace_bpe(*, unknown: str | None = "<unk>", fuses: bool = True, scheme: str = "always", size: int = 170) -> str:
    """Words behind a sign for the space, and nothing to fall back on. Without `unknown` it drops what it lacks."""
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=fuses))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def plain_unigram(*, scheme: str = "first") -> str:
    """Without a normaliser."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@cache
def with_some_bytes() -> str:
    """SentencePiece's BPE that falls back on bytes, and has only those below 0xC0 and the beginnings of Arabic."""
    parts = json.loads(gemma_like())
    kept = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in (*range(0xC0), 0xD8, 0xD9))]
    pieces = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].__getitem__)
    ordered = [*kept, *(piece for piece in pieces if not piece.startswith("<"))]
    parts["model"]["vocab"] = {piece: index for index, piece in enumerate(ordered)}
    return json.dumps(parts)


@cache
def with_few_letters() -> str:
    """Byte-level, and without the bytes that Arabic and Hindi begin with; it has a sign for them."""
    parts = json.loads(byte_level())
    vocabulary = parts["model"]["vocab"]
    lacking = {ALPHABET_OF_BYTES[byte] for byte in (0xD8, 0xD9, 0xE0)}
    pieces = [piece for piece in sorted(vocabulary, key=vocabulary.__getitem__) if not lacking & set(piece)]
    parts["model"] |= {"vocab": {piece: index for index, piece in enumerate([*pieces, "<unk>"])}, "unk_token": "<unk>"}
    return json.dumps(parts)


def small_bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> str:
    """Byte-level BPE without a pattern: merges reach over spaces. Tokens are written in the byte alphabet."""
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


FAMILIES: dict[str, Callable[[], str]] = {
    "byte_level": byte_level,
    "with_prefix_space": with_prefix_space,
    "with_nfc": with_nfc,
    "with_extra_specials": with_extra_specials,
    "gemma_like": gemma_like,
    "llama2_like": llama2_like,
    "unigram": unigram,
}
WITHOUT_BYTES: dict[str, Callable[[], str]] = {
    "metaspace_bpe": metaspace_bpe,
    "metaspace_bpe_unfused": lambda: metaspace_bpe(fuses=False, scheme="first"),
    "metaspace_bpe_dropping": lambda: metaspace_bpe(unknown=None, scheme="never"),
    "metaspace_bpe_large": lambda: metaspace_bpe(size=260, scheme="never"),
    "plain_unigram": plain_unigram,
    "with_some_bytes": with_some_bytes,
    "with_few_letters": with_few_letters,
}
"""More of those that cannot."""
WRITES_ALL = sorted(FAMILIES.keys() - {"unigram"})
"""Those that can write every text."""
