"""How few tokens a text can have, told from its bytes without tokenizing it. Knows no prompts and no limits.

Give each byte value b the weight 1 / (bytes of the longest token that holds b). The bytes of any token then weigh at
most 1 together, so a text has at least as many tokens as its bytes weigh. That holds where the tokenizer's tokens cover
every byte of the text. Where its steps drop, shorten or fuse text, the bound allows for it, or there is none.
"""

# B = the 256 values of a byte, R = ways to weigh them, each of which is right by itself

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Model

from preceptor_server.alignment.byte_level import ALPHABET, from_alphabet
from preceptor_server.alignment.continuation import flat_steps, state_of
from preceptor_server.alignment.tokenizer_file import Json

SHRINKS_BY = {"NFC": 9, "NFD": 3, "NFKC": 12, "NFKD": 4}
"""At least the factor by which a normal form of Unicode may shorten UTF-8: that of decomposing one character, times
that of composing one. A test computes both from Python's Unicode data."""
SPACE_SIGN = "\u2581".encode()
"""What stands for a space in vocabularies that are not byte-level."""
_SPACE = ord(" ")
_CHARACTER_BYTES = 4
"""Of the longest character."""
_WHITE = b" \t\n\v\f\r\x1c\x1d\x1e\x1f"
_LEADS_OF_WHITE = b"\xc2\xe1\xe2\xe3"
"""First bytes of the other characters that are white space."""
_NEVER_IN_UTF8 = frozenset({0xC0, 0xC1, *range(0xF5, 0x100)})
_CONTINUATIONS = slice(0x80, 0xC0)
_LEADS = slice(0xC0, 0x100)
_SLICE = 1 << 18
"""Characters that are looked at together: so much memory does a text of any length take."""
_SLACK = 1e-9
"""Relative; of rounding."""
_KEEPS_ALL_BYTES = frozenset({"ByteLevel", "Digits", "UnicodeScripts", "FixedLength"})
"""Pre-tokenizers that drop nothing, whatever their options."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextBound:
    """The fewest tokens of any text, for one tokenizer."""

    weights_RB: npt.NDArray[np.float64]
    """No rows where there is no bound. A negative weight is of a character that may take a byte before it along."""
    longest_bytes: int = 0
    """Of one token, where the tokenizer neither shortens nor drops text."""
    why_none: str = ""
    """The step of the tokenizer for which there is no bound; empty where there is one."""

    def least_tokens_of(self, counts_B: npt.NDArray[np.int64]) -> int:
        """The same of a text of which only these numbers of bytes are known."""
        margins_R = np.minimum(self.weights_RB.min(axis=1, initial=0.0), 0.0)
        return _floor(float(((self.weights_RB * counts_B).sum(axis=1) + margins_R).max(initial=0.0)))

    def least_tokens(self, text: str, *, stop_above: int) -> int:
        """A text has no fewer tokens than this. Ends as soon as that is more than `stop_above`."""
        if not len(self.weights_RB):
            return 0
        by_length = _floor(len(text) * float(self.weights_RB.min(axis=1).max()))
        if by_length > stop_above:
            return by_length
        weighs_R = np.zeros(len(self.weights_RB))
        # The first character of a slice may take the last of the slice before it along.
        margins_R = np.minimum(self.weights_RB.min(axis=1), 0.0)
        for start in range(0, len(text), _SLICE):
            data = text[start : start + _SLICE].encode("utf-8", "surrogatepass")
            counts_B = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
            weighs_R += np.maximum((self.weights_RB * counts_B).sum(axis=1) + margins_R, 0.0)
            if weighs_R.max() * (1 - _SLACK) > stop_above + 1:
                break
        return _floor(float(weighs_R.max()))


def bound_of(tokenizer: Tokenizer, *, vocabulary: Collection[str]) -> TextBound:
    """Reads the tokenizer's steps once. `vocabulary` is that of its model."""
    normalizers = flat_steps(state_of(tokenizer.normalizer), "normalizers")
    pre_tokenizers = flat_steps(state_of(tokenizer.pre_tokenizer), "pretokenizers")
    kind = type(tokenizer.model).__name__
    reason = (
        next(filter(None, map(_loses, normalizers)), "")
        or next(filter(None, map(_drops, pre_tokenizers)), "")
        or ("" if kind in ("BPE", "Unigram") else f"model {kind}")
    )
    if reason:
        return TextBound(weights_RB=np.zeros((0, 256)), why_none=reason)
    is_byte_level = any(step["type"] == "ByteLevel" for step in (*normalizers, *pre_tokenizers))
    added = list(tokenizer.get_added_tokens_decoder().values())
    lengths_B = _longest_by_byte(vocabulary, added, is_byte_level=is_byte_level)
    lacking = _lacking_bytes(tokenizer.model, vocabulary, is_byte_level=is_byte_level)
    factor = math.prod(SHRINKS_BY.get(step["type"], 1) for step in normalizers)
    weights_RB = _weights(lengths_B, factor=factor, lacking=lacking)
    if any(token.lstrip or token.rstrip for token in added):
        # Such tokens take any amount of white space beside them along.
        for values in (list(_WHITE), list(_LEADS_OF_WHITE), _CONTINUATIONS):
            weights_RB[:, values] = np.minimum(weights_RB[:, values], 0.0)
    return TextBound(weights_RB=weights_RB, longest_bytes=int(lengths_B.max()) * factor)


def _weights(lengths_B: npt.NDArray[np.int64], *, factor: int, lacking: Collection[int]) -> npt.NDArray[np.float64]:
    own_B = 1 / lengths_B
    own_B[list(lacking)] = 0.0
    if factor == 1:
        return own_B[None, :]
    # In normal form the longest token bounds all bytes; and each byte of ASCII stays, unless a mark that follows it,
    # which is not ASCII, is composed with it.
    ascii_B = np.where(np.arange(256) < 0x80, own_B, 0.0)
    ascii_B[_LEADS] = -ascii_B.max()
    if any(byte >= 0x80 for byte in lacking):  # then what is composed may be left out
        return ascii_B[None, :]
    plain_B = np.full(256, 1 / (float(lengths_B.max()) * factor))
    plain_B[list(lacking)] = 0.0
    return np.stack([plain_B, ascii_B])


def _lacking_bytes(model: Model, vocabulary: Collection[str], *, is_byte_level: bool) -> Collection[int]:
    """Bytes of which any number may be left out, or become one token for the unknown."""
    if is_byte_level:
        return [byte for byte in range(256) if ALPHABET[byte] not in vocabulary and byte not in _NEVER_IN_UTF8]
    if getattr(model, "byte_fallback", False) and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        return ()
    has_space = " " in vocabulary or SPACE_SIGN.decode() in vocabulary
    plain = {byte for byte in range(0x80) if chr(byte) in vocabulary} | ({_SPACE} if has_space else set())
    return [byte for byte in range(256) if byte not in plain]


def _floor(weight: float) -> int:
    return max(0, math.floor(weight * (1 - _SLACK)))


def _longest_by_byte(
    vocabulary: Iterable[str], added: Iterable[AddedToken], *, is_byte_level: bool
) -> npt.NDArray[np.int64]:
    """For each byte value the bytes of the longest token that holds it; at least those of one character, which may
    become a token for the unknown."""
    # In a byte-level vocabulary a token outside its alphabet stands for its own UTF-8.
    tokens = [from_alphabet(token) if is_byte_level else token.encode("utf-8", "surrogatepass") for token in vocabulary]
    tokens.sort(key=len, reverse=True)
    lengths_B = np.full(256, _CHARACTER_BYTES, np.int64)
    missing = set(range(256))
    for token in tokens:
        if len(token) <= _CHARACTER_BYTES or not missing:
            break
        held = missing.intersection(token)
        if not is_byte_level and _SPACE in missing and SPACE_SIGN in token:
            held.add(_SPACE)
        if held:
            lengths_B[list(held)] = len(token)
            missing -= held
    for content in (token.content for token in added):
        data = content.encode("utf-8", "surrogatepass")
        # What is not ASCII may be another text in normal form.
        values = list(data) if data.isascii() else slice(None)
        lengths_B[values] = np.maximum(lengths_B[values], len(data))
    return lengths_B


def _loses(step: Json) -> str:
    """A normalizer that shortens a text by no known factor; empty where it does not."""
    kind = str(step["type"])
    is_space_sign = kind == "Replace" and step["pattern"] == {"String": " "} and step["content"].encode() == SPACE_SIGN
    return "" if is_space_sign or kind in SHRINKS_BY or kind in ("ByteLevel", "Prepend") else f"normalizer {kind}"


def _drops(step: Json) -> str:
    """A pre-tokenizer that may leave text out."""
    kind = str(step["type"])
    keeps = kind in _KEEPS_ALL_BYTES
    keeps |= kind in ("Split", "Punctuation") and step["behavior"] != "Removed"
    keeps |= kind == "Metaspace" and step["replacement"].encode() == SPACE_SIGN
    return "" if keeps else f"pre-tokenizer {kind}"
