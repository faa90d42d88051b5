"""Finds the text of each token of a sequence with nothing but a tokenizer's decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_MAX_PIECES = 8
"""Tokens that may make up one readable text: a character has at most four bytes, and its pieces may share tokens with
those of its neighbours."""
_REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[Sequence[int]], str]


def token_texts(prompt_ids: Sequence[int], response_ids: Sequence[int], *, decode: Decode) -> list[str]:
    """One text per token of the response, never empty.

    Tokens that are valid UTF-8 only together show their common text and their place in it: "€ 1/3", "€ 2/3", "€ 3/3".
    A token without a text shows its id: "<7>".
    """
    texts: list[str] = []
    before = list(prompt_ids[-1:])
    while len(texts) < len(response_ids):
        at = len(texts)
        pieces = response_ids[at : at + _num_pieces(response_ids[at:], decode=decode)]
        text = decode(pieces) if len(pieces) > 1 else token_text(pieces[0], before=before, decode=decode)
        texts += [f"{text} {n}/{len(pieces)}" for n in range(1, len(pieces) + 1)] if len(pieces) > 1 else [text]
        before = list(pieces[-1:])
    return texts


def token_text(token: int, *, before: Sequence[int], decode: Decode) -> str:
    """The text of a token behind the token `before`, if any: SentencePiece drops the space of a token that stands
    first. Half a character, as a candidate may be, shows as the replacement character and its id."""
    prefix, joint = decode(before), decode([*before, token])
    is_continued = bool(prefix) and joint.startswith(prefix) and _REPLACEMENT_CHARACTER not in prefix
    text = joint[len(prefix) :] if is_continued else decode([token])
    if _REPLACEMENT_CHARACTER in text:
        return f"{text}<{token}>"
    return text or f"<{token}>"


def _num_pieces(ids: Sequence[int], *, decode: Decode) -> int:
    """How many tokens from the first on are one readable text; 1 where the first is readable, or they never are."""
    for number in range(1, min(len(ids), _MAX_PIECES) + 1):
        if _REPLACEMENT_CHARACTER not in decode(ids[:number]):
            return number
        if _REPLACEMENT_CHARACTER not in decode(ids[number - 1 : number]):
            return 1
    return 1
