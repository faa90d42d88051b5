"""Proves on samples that a table tells the bytes that its tokenizer means. Knows nothing of a second vocabulary."""

from __future__ import annotations

import numpy as np

from preceptor_server.alignment.segmenter import Segmentation, Segmenter
from preceptor_server.alignment.tokenizer_file import Json, objects_of
from preceptor_server.alignment.types import TokenKind, TokenTable
from preceptor_server.errors import InvalidTokenizerError

PROBES = {
    "English": "The quick brown fox jumps over the lazy dog, doesn't it?",
    "code": "def f(x: int) -> int:\n    return {'a': [x**2 for _ in range(10)]}  # <b>!</b>\n",
    "spaces and newlines": "a  b   c\t\td \n\n\n  e\r\n    f ",
    "digits": "3.14159 + 1,000,000 = 1000003.14159 (99%)",
    "emoji": "fine \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "Chinese": "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3000\u4eca\u5929\u5929\u6c14\u5f88\u597d",
    "Arabic": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641",
    "combining accents": "e\u0301a\u0300o\u0302 \u00e9\u00e0\u00f4 \ufb01 \u212b \u00bd",
}
"""Texts that a table with wrong bytes, or a step that changes bytes, fails on."""


def verify_table(segmenter: Segmenter) -> None:
    """Raises InvalidTokenizerError where the tokens of a probe do not join to it.

    What a tokenizer has no token for, such as a script, it may leave out.
    """
    texts = [probe.encode() for probe in PROBES.values()]
    for name, text, segmentation in zip(PROBES, texts, segmenter.segment(texts), strict=True):
        for gap in _gaps(segmentation, text):
            known = [
                character for character in gap.decode(errors="replace") if _has(segmenter.table, character.encode())
            ]
            if known:
                raise InvalidTokenizerError(
                    f"cannot be used: it loses or changes {known[0]!r} in the {name} that it is given, so its tokens "
                    "cannot be laid beside another tokenizer's",
                    reason="UNSUPPORTED_TOKENIZER",
                )


def verify_added_tokens(segmenter: Segmenter, parts: Json) -> None:
    """Raises InvalidTokenizerError where the library gives an added token another id than the file, as it may."""
    for added in objects_of(parts, "added_tokens"):
        actual = segmenter.tokenizer.token_to_id(added["content"])
        if actual != added["id"]:
            raise InvalidTokenizerError(
                f"the added token {added['content'][:40]!r} has the id {added['id']} in the file, and the tokenizers "
                f"library gives it {actual}: save the tokenizer again with save_pretrained"
            )


def _gaps(segmentation: Segmentation, text: bytes) -> list[bytes]:
    known = segmentation.known()
    starts = np.insert(known.ends_M, 0, 0)
    ends = np.append(known.starts_M, len(text))
    pairs = zip(starts.tolist(), ends.tolist(), strict=True)
    return [text[start:end] for start, end in pairs if start < end]


def _has(table: TokenTable, token: bytes) -> bool:
    lengths_V = np.diff(table.offsets_V1)
    ids = np.flatnonzero((lengths_V == len(token)) & (table.kinds_V == TokenKind.TEXT))
    return any(table.bytes_of(int(token_id)) == token for token_id in ids)
