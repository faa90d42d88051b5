"""The first token that a tokenizer cuts bytes into, for very many short texts at once. Knows nothing of a teacher.

As the middle of a text: where its end decides how it is cut, something follows.
"""

# W = words (texts, and what follows them), B = bytes that are compared

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from preceptor_server.alignment.byte_level import to_alphabet
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.types import NO_PLACE, IdMap

_CHUNK = 256
"""Words that are encoded as those of one text: cheaper than an encoding of its own for each."""
_BATCH = 32 * _CHUNK
"""Words that are encoded at once: many for several threads, few enough that their encodings take little memory."""
_FOLLOWER = "x"
_ONE_BYTE = frozenset(map(chr, range(128)))

Text = str | bytes
"""Bytes only where they are not UTF-8, such as a part of a character."""
_Ids = npt.NDArray[np.int64]


def as_text(data: bytes) -> Text:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class FirstTokens:
    """Of one tokenizer."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        table = segmenter.table
        self._num_ids = table.size
        self._bytes = np.frombuffer(table.blob, np.uint8)
        self._offsets_V1 = table.offsets_V1
        # One entry more than there are ids, of no bytes: for ids that the table does not know.
        self._lengths_V1 = np.append(np.diff(table.offsets_V1), 0)

    def find(self, texts: Sequence[Text]) -> IdMap:
        """For each text, the first token; NO_PLACE where the text begins with what the tokenizer cannot write."""
        ids = np.full(len(texts), NO_PLACE, np.int32)
        strings = [text for text in texts if text and isinstance(text, str)]
        batches = [strings[start : start + _BATCH] for start in range(0, len(strings), _BATCH)]
        # The library encodes without Python's lock, so that a batch is encoded while another one is read.
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(self._find_strings, batches))
        others = {index: text for index, text in enumerate(texts) if not (text and isinstance(text, str))}
        ids[np.delete(np.arange(len(texts)), list(others))] = np.concatenate([np.empty(0, np.int64), *found])
        pieces = {index: text for index, text in others.items() if text and isinstance(text, bytes)}
        ids[list(pieces)] = self._find_pieces(list(pieces.values()))
        return ids

    def _find_strings(self, strings: Sequence[str]) -> _Ids:
        # GPT-2 cuts "  " otherwise before a word than at the end of a text, and a token is rarely the end of a text.
        spaced = [index for index, string in enumerate(strings) if string[-1].isspace() and string not in _ONE_BYTE]
        words, num_added_W = list(strings), np.zeros(len(strings), np.int64)
        for index in spaced:
            words[index] += _FOLLOWER
        num_added_W[spaced] = len(_FOLLOWER)
        ids = self._find_words(words, num_added_W)
        again = [index for index in spaced if ids[index] == NO_PLACE]
        ids[again] = self._find_words([strings[index] for index in again], np.zeros(len(again), np.int64))
        if self._segmenter.drops_unknown:
            # What stands behind a character that is left out may have been joined to what stands before it.
            missed = np.flatnonzero(ids == NO_PLACE)
            ids[missed] = self._segment_first([strings[index].encode() for index in missed.tolist()])
        return ids

    def _find_words(self, words: Sequence[str], num_added_W: _Ids) -> _Ids:
        data = "".join(words).encode()
        sizes_W = _encoded_sizes(words, data)
        found = self._encode_first(self._segmenter.tokenizer, words, sizes_W)
        return self._begins(found, data, sizes_W, num_added_W)

    def _find_pieces(self, pieces: Sequence[bytes]) -> _Ids:
        """Of texts that are not UTF-8."""
        if self._segmenter.byte_model is None:
            return self._segment_first(pieces)
        sizes_W = np.fromiter(map(len, pieces), np.int64, len(pieces))
        found = self._encode_first(self._segmenter.byte_model, [to_alphabet(piece) for piece in pieces], sizes_W)
        return self._begins(found, b"".join(pieces), sizes_W, np.zeros_like(sizes_W))

    def _begins(self, ids_W: _Ids, data: bytes, sizes_W: _Ids, num_added_W: _Ids) -> _Ids:
        """Keeps a token only where its bytes begin the word: else it stands for what was left out or changed.

        The words stand in `data` one after another; the last `num_added_W` bytes of each are not of its text.
        """
        known_W = np.where((ids_W >= 0) & (ids_W < self._num_ids), ids_W, self._num_ids)
        lengths_W = self._lengths_V1[known_W]
        kept = np.flatnonzero((lengths_W > 0) & (lengths_W <= sizes_W - num_added_W))
        lengths = lengths_W[kept]
        ends = np.cumsum(lengths)
        begins = ends - lengths
        words_B = np.repeat((np.cumsum(sizes_W) - sizes_W)[kept] - begins, lengths)
        tokens_B = np.repeat(self._offsets_V1[known_W[kept]] - begins, lengths)
        places_B = np.arange(len(words_B))
        is_other_B = np.frombuffer(data, np.uint8)[words_B + places_B] != self._bytes[tokens_B + places_B]
        num_other_B1 = np.concatenate([[0], np.cumsum(is_other_B)])
        kept = kept[num_other_B1[ends] == num_other_B1[begins]]
        found = np.full(len(ids_W), NO_PLACE, np.int64)
        found[kept] = ids_W[kept]
        return found

    def _encode_first(self, tokenizer: Tokenizer, words: Sequence[str], sizes_W: _Ids) -> _Ids:
        """`sizes_W`: the bytes that each word stands for."""
        starts = range(0, len(words), _CHUNK)
        chunks = [words[start : start + _CHUNK] for start in starts]
        try:
            encodings = tokenizer.encode_batch_fast(chunks, is_pretokenized=True, add_special_tokens=False)
        except Exception:  # noqa: BLE001  the library raises plain Exception where a model without <unk> needs it
            return self._segment_first([word.encode() for word in words])
        first = [np.empty(0, np.int64)]
        for start, chunk, encoding in zip(starts, chunks, encodings, strict=True):
            first.append(self._first_of_chunk(tokenizer, chunk, encoding, sizes_W[start : start + _CHUNK]))
        return np.concatenate(first)

    def _first_of_chunk(self, tokenizer: Tokenizer, words: Sequence[str], encoding: Encoding, sizes_W: _Ids) -> _Ids:
        """The token at the start of each word."""
        ids = np.array(encoding.ids, np.int64)
        lengths = self._lengths_V1[np.minimum(ids, self._num_ids)]
        token_ends, word_ends = np.cumsum(lengths), np.cumsum(sizes_W)
        if len(ids) and token_ends[-1] == word_ends[-1] and lengths.all():
            token_starts, word_starts = token_ends - lengths, word_ends - sizes_W
            places = np.searchsorted(token_starts, word_starts)
            if (token_starts[places] == word_starts).all():
                return ids[places]
        return _first_by_words(tokenizer, words)

    def _segment_first(self, texts: Sequence[bytes]) -> _Ids:
        """The same with gaps: slow, and exact where the model leaves characters out."""
        found = [segmentation.known() for segmentation in self._segmenter.segment(texts)]
        return np.array([s.ids_M[0] if s.starts_M[:1].tolist() == [0] else NO_PLACE for s in found], np.int64)


def _first_by_words(tokenizer: Tokenizer, words: Sequence[str]) -> _Ids:
    """The first token of each word, as the library counts words, which takes it a third longer."""
    encoding = tokenizer.encode_batch([words], is_pretokenized=True, add_special_tokens=False)[0]
    ids, indices = np.array(encoding.ids, np.int64), np.array(encoding.word_ids, np.int64)
    begins = np.diff(indices, prepend=-1) != 0
    first = np.full(len(words), NO_PLACE, np.int64)
    first[indices[begins]] = ids[begins]
    return first


def _encoded_sizes(words: Sequence[str], data: bytes) -> _Ids:
    """The UTF-8 bytes of each word; `data` are those of all."""
    character_ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
    # Every byte that does not continue a character begins one; beyond the last, one more would.
    starts = np.append(np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80), len(data))
    return np.diff(starts[character_ends], prepend=0)
