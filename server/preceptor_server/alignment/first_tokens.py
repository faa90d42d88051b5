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
"""Strings that are encoded as the words of one text: cheaper than an encoding of its own for each."""


def tokens_of(table: TokenTable) -> list[bytes]:
    """The bytes of every id."""
    offsets = table.offsets_V1.tolist()
    return [table.blob[start:end] for start, end in pairwise(offsets)]


class FirstTokens:
    """Of one tokenizer."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._tokens = tokens_of(segmenter.table)
        # One entry more than there are ids, of no bytes: for ids that the table does not know.
        self._lengths_V1 = np.append(np.diff(segmenter.table.offsets_V1), 0)

    def find(self, texts: Sequence[bytes]) -> IdMap:
        """For each text, the first token; NO_PLACE where the text begins with what the tokenizer cannot write."""
        ids = np.full(len(texts), NO_PLACE, np.int32)
        strings, pieces = _decode(texts)
        self._put_strings(ids, texts, strings)
        if self._segmenter.drops_unknown:
            # What stands behind a character that is left out may have been joined to what stands before it.
            missed = [index for index in strings if ids[index] == NO_PLACE]
            ids[missed] = self._segment_first([texts[index] for index in missed])
        self._put_pieces(ids, texts, pieces)
        return ids

    def _put_strings(self, ids: IdMap, texts: Sequence[bytes], strings: dict[int, str]) -> None:
        # GPT-2 cuts "  " otherwise before a word than at the end of a text, and a token is rarely the end of a text.
        spaced = {index: string for index, string in strings.items() if string[-1].isspace() and len(texts[index]) > 1}
        self._put(ids, texts, spaced, followed_by="x")
        self._put(ids, texts, {index: string for index, string in strings.items() if ids[index] == NO_PLACE})

    def _put(self, ids: IdMap, texts: Sequence[bytes], strings: dict[int, str], *, followed_by: str = "") -> None:
        whole = [string + followed_by for string in strings.values()] if followed_by else list(strings.values())
        sizes = [len(texts[index]) + len(followed_by) for index in strings]
        found = self._encode_first(self._segmenter.tokenizer, whole, sizes)
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
            found = self._encode_first(self._segmenter.byte_model, letters, [len(string) for string in letters])
            self._put_prefixes(ids, texts, zip(pieces, found.tolist(), strict=True))
            return
        ids[pieces] = self._segment_first([texts[index] for index in pieces])

    def _encode_first(
        self, tokenizer: Tokenizer, strings: Sequence[str], sizes: Sequence[int]
    ) -> npt.NDArray[np.int64]:
        """`sizes`: the bytes that each string stands for."""
        starts = range(0, len(strings), _CHUNK)
        chunks = [strings[start : start + _CHUNK] for start in starts]
        try:
            encodings = tokenizer.encode_batch_fast(chunks, is_pretokenized=True, add_special_tokens=False)
        except Exception:  # noqa: BLE001  the library raises plain Exception where a model without <unk> needs it
            return self._segment_first([string.encode() for string in strings])
        sizes_S = np.fromiter(sizes, np.int64, len(strings))
        first = [np.empty(0, np.int64)]
        for start, chunk, encoding in zip(starts, chunks, encodings, strict=True):
            ids = self._first_by_sizes(np.array(encoding.ids, np.int64), sizes_S[start : start + _CHUNK])
            first.append(_first_by_words(tokenizer, chunk) if ids is None else ids)
        return np.concatenate(first)

    def _first_by_sizes(self, ids: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """The token at the start of each word, where the tokens add up to the words; else None."""
        lengths = self._lengths_V1[np.minimum(ids, len(self._tokens))]
        token_ends, word_ends = np.cumsum(lengths), np.cumsum(sizes)
        if not len(ids) or token_ends[-1] != word_ends[-1] or not lengths.all():
            return None
        token_starts, word_starts = token_ends - lengths, word_ends - sizes
        places = np.searchsorted(token_starts, word_starts)
        return ids[places] if (token_starts[places] == word_starts).all() else None

    def _segment_first(self, texts: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The same with gaps: slow, and exact where the model leaves characters out."""
        found = self._segmenter.segment(texts)
        return np.array([s.ids_M[0] if s.starts_M[:1].tolist() == [0] else NO_PLACE for s in found], np.int64)


def _first_by_words(tokenizer: Tokenizer, words: Sequence[str]) -> npt.NDArray[np.int64]:
    """The first token of each word, as the library counts words, which takes it a third longer."""
    encoding = tokenizer.encode_batch([words], is_pretokenized=True, add_special_tokens=False)[0]
    ids, indices = np.array(encoding.ids, np.int64), np.array(encoding.word_ids, np.int64)
    begins = np.diff(indices, prepend=-1) != 0
    first = np.full(len(words), NO_PLACE, np.int64)
    first[indices[begins]] = ids[begins]
    return first


def _decode(texts: Sequence[bytes]) -> tuple[dict[int, str], list[int]]:
    """The texts that are UTF-8, by index, and the indices of those that are not; empty ones are neither."""
    strings, pieces = {}, []
    for index, text in enumerate(texts):
        try:
            strings[index] = text.decode()
        except UnicodeDecodeError:
            pieces.append(index)
    return {index: string for index, string in strings.items() if string}, pieces
