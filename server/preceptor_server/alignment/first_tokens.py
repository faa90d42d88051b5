"""The first token that a tokenizer cuts bytes into, for very many short texts at once. Knows nothing of a teacher.

As the middle of a text: where its end decides how it is cut, something follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from preceptor_server.alignment.byte_level import to_alphabet
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.types import NO_PLACE, IdMap, TokenTable

_CHUNK = 128
"""Texts that are encoded as the words of one text: an encoding of its own for each costs more than twice as much."""


def tokens_of(table: TokenTable) -> list[bytes]:
    """The bytes of every id."""
    offsets = table.offsets_V1.tolist()
    return [table.blob[start:end] for start, end in pairwise(offsets)]


class FirstTokens:
    """Of one tokenizer."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._tokens = tokens_of(segmenter.table)

    def find(self, texts: Sequence[bytes]) -> IdMap:
        """For each text, the first token; NO_PLACE where the text begins with what the tokenizer cannot write."""
        ids = np.full(len(texts), NO_PLACE, np.int32)
        strings, pieces = _decode(texts)
        self._put_strings(ids, texts, strings)
        if self._segmenter.drops_unknown:
            # What stands behind a character that is left out may have been joined to what stands before it.
            self._segment([index for index in strings if ids[index] == NO_PLACE], ids, texts)
        self._put_pieces(ids, texts, pieces)
        return ids

    def _put_strings(self, ids: IdMap, texts: Sequence[bytes], strings: dict[int, str]) -> None:
        # GPT-2 cuts "  " otherwise before a word than at the end of a text, and a token is rarely the end of a text.
        followed = {
            index: string + "x" for index, string in strings.items() if len(string) > 1 and string[-1].isspace()
        }
        self._put(ids, texts, strings | followed)
        missed = [index for index in followed if ids[index] == NO_PLACE]
        self._put(ids, texts, {index: strings[index] for index in missed})

    def _put(self, ids: IdMap, texts: Sequence[bytes], strings: dict[int, str]) -> None:
        found = self._encode_first(self._segmenter.tokenizer, list(strings.values()))
        self._put_prefixes(ids, texts, zip(strings, found.tolist(), strict=True))

    def _put_prefixes(self, ids: IdMap, texts: Sequence[bytes], found: Iterable[tuple[int, int]]) -> None:
        """Keeps a token only where its bytes begin the text: else it stands for what was left out or changed."""
        for index, token_id in found:
            if 0 <= token_id < len(self._tokens):
                token = self._tokens[token_id]
                if token and texts[index].startswith(token):
                    ids[index] = token_id

    def _put_pieces(self, ids: IdMap, texts: Sequence[bytes], pieces: Sequence[int]) -> None:
        """Of texts that are not UTF-8, such as a part of a character."""
        if self._segmenter.byte_model is not None:
            letters = [to_alphabet(texts[index]) for index in pieces]
            found = self._encode_first(self._segmenter.byte_model, letters)
            self._put_prefixes(ids, texts, zip(pieces, found.tolist(), strict=True))
            return
        for index, segmentation in zip(pieces, self._segmenter.segment([texts[i] for i in pieces]), strict=True):
            if len(segmentation.starts_M) and segmentation.starts_M[0] == 0:
                ids[index] = segmentation.ids_M[0]

    def _encode_first(self, tokenizer: Tokenizer, strings: Sequence[str]) -> npt.NDArray[np.int64]:
        first = np.full(len(strings), NO_PLACE, np.int64)
        starts = range(0, len(strings), _CHUNK)
        chunks = [strings[start : start + _CHUNK] for start in starts]
        try:
            encodings = tokenizer.encode_batch(chunks, is_pretokenized=True, add_special_tokens=False)
        except Exception:  # noqa: BLE001  the library raises plain Exception where a model without <unk> needs it
            return self._segment_first(strings)
        for start, encoding in zip(starts, encodings, strict=True):
            ids, words = np.array(encoding.ids, np.int64), np.array(encoding.word_ids, np.int64)
            begins = np.diff(words, prepend=-1) != 0
            first[start + words[begins]] = ids[begins]
        return first

    def _segment_first(self, strings: Sequence[str]) -> npt.NDArray[np.int64]:
        segmentations = self._segmenter.segment([string.encode() for string in strings])
        return np.array(
            [s.ids_M[0] if len(s.ids_M) and s.starts_M[0] == 0 else NO_PLACE for s in segmentations], np.int64
        )


def _decode(texts: Sequence[bytes]) -> tuple[dict[int, str], list[int]]:
    """The texts that are UTF-8, by index, and the indices of those that are not; empty ones are neither."""
    strings, pieces = {}, []
    for index, text in enumerate(texts):
        try:
            strings[index] = text.decode()
        except UnicodeDecodeError:
            pieces.append(index)
    return {index: string for index, string in strings.items() if string}, pieces
