"""Cuts a long text where its tokenizer cuts it anyway, so that it can be encoded piece by piece, with the same ids.

A cut lies between a letter and a space or newline. It is certain for two kinds of tokenizers only, and others get their
texts whole: those whose pattern never matches across such a place, and those without a pattern whose vocabulary has no
token across it, so that no merge crosses it. Knows no limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from preceptor_server.alignment.continuation import flat_steps, state_of
from preceptor_server.alignment.text_bound import SHRINKS_BY, SPACE_SIGN
from preceptor_server.alignment.tokenizer_file import Json

PIECE_CHARACTERS = 1 << 16
"""At least so long is a piece: some 20 ms and 10 MB."""
_LETTERS = "A-Za-z\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
"""Letters to every version of Unicode: Latin, Cyrillic, Kana, Han, Hangul."""
_CUT = re.compile(f"(?<=[{_LETTERS}])(?=[ \n])")
_ACROSS = re.compile(f"[{_LETTERS}][ \n{SPACE_SIGN.decode()}]")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = frozenset({_GPT2, _LLAMA3, _QWEN2, _O200K})
"""Patterns that neither match across a cut nor look behind it; what they look ahead for, `(?!\\S)`, is the same before
a space and at the end."""


def can_be_cut(tokenizer: Tokenizer, *, vocabulary: Iterable[str]) -> bool:
    """Whether `pieces_of` gives the same ids as the whole text, for this tokenizer without special tokens added.
    `vocabulary` is that of its model."""
    normalizers = flat_steps(state_of(tokenizer.normalizer), "normalizers")
    pre_tokenizers = flat_steps(state_of(tokenizer.pre_tokenizer), "pretokenizers")
    is_local = all(step["type"] in SHRINKS_BY or _is_space_sign(step) for step in normalizers)
    if not is_local or not isinstance(tokenizer.model, BPE) or getattr(tokenizer.model, "dropout", None) is not None:
        return False
    if any(map(_reaches_across, tokenizer.get_added_tokens_decoder().values())):
        return False
    has_pattern = any(_is_known_pattern(step) for step in pre_tokenizers)
    if not all(_is_known_pattern(step) or _is_harmless(step) for step in pre_tokenizers):
        return False
    return has_pattern or not any(map(_ACROSS.search, vocabulary))


def pieces_of(text: str, *, num_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """The text in pieces of at least so many characters, where it has places to cut; the last one may be shorter."""
    start = 0
    while start < len(text):
        found = _CUT.search(text, start + num_characters)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def _reaches_across(token: AddedToken) -> bool:
    """Whether an added token may lie across a cut, take white space beyond it along, or depend on the letter before
    it."""
    takes_space = token.rstrip and token.content[-1:].isalpha()
    looks_back = token.single_word and token.content[:1].isspace()
    return bool(_ACROSS.search(token.content)) or takes_space or looks_back


def _is_space_sign(step: Json) -> bool:
    return bool(
        step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"].encode() == SPACE_SIGN
    )


def _is_known_pattern(step: Json) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"]) and not step["add_prefix_space"]
    return step["type"] == "Split" and step["pattern"].get("Regex") in PATTERNS and step["behavior"] == "Isolated"


def _is_harmless(step: Json) -> bool:
    """A step that cuts at single characters, whatever stands beside them."""
    match step["type"]:
        case "ByteLevel":
            return not step["add_prefix_space"]
        case "Digits":
            return True
        case "Split":
            return len(step["pattern"].get("String", "")) == 1 and step["behavior"] != "Contiguous"
        case _:
            return False
