"""Cuts bytes into the tokens that a tokenizer writes for them in the middle of a text. Knows nothing of students.

No special token is added or recognised, nothing is put in front, nothing is normalised. Where a token lies follows from
its bytes: a tokenizer that can write the text writes all of it, so its tokens' lengths add up to the places. Only where
they do not are places looked for, token by token. What the tokenizer writes for text that it lacks is kept, since its
model expects to read it, and marked: it stands for no bytes that anybody knows.
"""

# M = tokens of one text, F = tokens of all texts, B = bytes of all tokens

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from preceptor_server.alignment.byte_level import to_alphabet
from preceptor_server.alignment.continuation import as_continuation, state_of
from preceptor_server.alignment.placing import Placed, place_by_offsets, place_in_row
from preceptor_server.alignment.tokenizer_file import load_tokenizer_json
from preceptor_server.alignment.types import TokenKind, TokenTable

_INVALID = re.compile("([\udc80-\udcff]+)")
"""What bytes that are no UTF-8 decode to, with surrogateescape."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """The tokens of one text. Token m covers its bytes [starts_M[m], ends_M[m]); a byte that none covers is a gap."""

    ids_M: npt.NDArray[np.int64]
    starts_M: npt.NDArray[np.int64]
    ends_M: npt.NDArray[np.int64]
    is_known_M: npt.NDArray[np.bool_]
    """Whether the token stands for just these bytes. One for the unknown does not: several may cover one gap."""

    def known(self) -> Segmentation:
        """Without the tokens that stand for other bytes than they cover."""
        if self.is_known_M.all():
            return self
        kept_M = self.is_known_M
        return Segmentation(
            ids_M=self.ids_M[kept_M],
            starts_M=self.starts_M[kept_M],
            ends_M=self.ends_M[kept_M],
            is_known_M=kept_M[kept_M],
        )


class Segmenter:
    """One tokenizer, and the bytes of its tokens."""

    def __init__(self, tokenizer_json: str, table: TokenTable) -> None:
        self.table = table
        self.tokenizer = load_tokenizer_json(tokenizer_json)
        """It writes continuations."""
        self.lossy_steps = as_continuation(self.tokenizer)
        """Names of the steps that were left out because they change bytes."""
        # A byte-level model sees letters of its alphabet only, so it can be given bytes that are no text.
        self.byte_model = Tokenizer(self.tokenizer.model) if _is_byte_level(self.tokenizer) else None
        model = self.tokenizer.model
        self.drops_unknown = getattr(model, "unk_token", None) is None and not getattr(model, "byte_fallback", True)
        """Whether it leaves out characters that it lacks without a sign."""
        # The library puts the bytes of a character before the <unk> of the one that it follows.
        self._splits_unwritable = self.drops_unknown or (
            table.unknown_id is not None and getattr(model, "byte_fallback", False)
        )
        # One entry more than there are ids, of no bytes: for ids that the table does not know.
        self._lengths_V1 = np.append(np.diff(table.offsets_V1), 0)
        self._bytes = np.frombuffer(table.blob, np.uint8)
        self._id_of_byte = _ids_of_bytes(table)

    def segment(self, texts: Sequence[bytes]) -> list[Segmentation]:
        """The tokens of each text. Never raises, whatever the bytes."""
        strings: list[str] = []
        runs_of_text: dict[int, list[str]] = {}
        for index, text in enumerate(texts):
            try:
                strings.append(text.decode())
            except UnicodeDecodeError:
                runs_of_text[index] = _INVALID.split(text.decode("utf-8", "surrogateescape"))
                strings.append("")
        segmentations = self._segment_strings(strings, texts)
        for index, runs in runs_of_text.items():
            segmentations[index] = self._segment_runs(runs)
        return segmentations

    def _segment_strings(self, strings: Sequence[str], texts: Sequence[bytes]) -> list[Segmentation]:
        ids = [encoding.ids for encoding in self._encode(strings)]
        counts = [len(ids_M) for ids_M in ids]
        ids_F = np.fromiter(chain.from_iterable(ids), np.int64, sum(counts))
        known_F = np.minimum(ids_F, self.table.size)
        lengths_F = self._lengths_V1[known_F]
        ends_F = np.cumsum(lengths_F)
        starts_F = ends_F - lengths_F
        joined = self._join(known_F, lengths_F, starts_F)
        segmentations = []
        first, place = 0, 0
        for string, text, count in zip(strings, texts, counts, strict=True):
            last, end = first + count, place + len(text)
            own = slice(first, last)
            num_bytes = int(ends_F[last - 1]) - place if count else 0
            if num_bytes == len(text) and joined[place:end] == text and lengths_F[own].all():
                found = Segmentation(
                    ids_M=ids_F[own],
                    starts_M=starts_F[own] - place,
                    ends_M=ends_F[own] - place,
                    is_known_M=np.ones(count, np.bool_),
                )
            else:
                found = self._segment_with_gaps(string)
            segmentations.append(found)
            first, place = last, place + num_bytes
        return segmentations

    def _join(
        self, ids_F: npt.NDArray[np.int64], lengths_F: npt.NDArray[np.int64], starts_F: npt.NDArray[np.int64]
    ) -> bytes:
        """The tokens' bytes one after another: byte b of the result is byte b - (start of its token) of its token."""
        offsets_F = self.table.offsets_V1[ids_F] - starts_F
        indices_B = np.repeat(offsets_F, lengths_F)
        indices_B += np.arange(len(indices_B))
        return self._bytes[indices_B].tobytes()

    def _segment_with_gaps(self, string: str) -> Segmentation:
        runs = self._split_unwritable(string) if self._splits_unwritable else [string]
        if len(runs) > 1:
            return self._segment_runs(runs)
        encoding = self._encode([string], with_offsets=True)[0]
        tokens = [(token_id, self._bytes_of(token_id)) for token_id in encoding.ids]
        return self._as_text(place_by_offsets(tokens, encoding.offsets, string))

    def _as_text(self, placed: Iterable[Placed]) -> Segmentation:
        """Text that happens to be a special token's name (Unigram finds it among its pieces) is not that token: it is
        what this tokenizer cannot write."""
        kinds_V, unknown_id, size = self.table.kinds_V, self.table.unknown_id, self.table.size
        read = []
        for token_id, start, end, is_known in placed:
            is_text = token_id < size and kinds_V[token_id] == TokenKind.TEXT
            own_id = token_id if is_text else unknown_id
            if own_id is not None:
                read.append((own_id, start, end, is_known))
        return _segmentation(read)

    def _split_unwritable(self, string: str) -> list[str]:
        """Runs of characters that the vocabulary has, and of others, in turn, beginning with one that it has.

        The model would drop the others, and join what stands on both sides of them into tokens that are not there, or
        put its sign for them behind what follows them.
        """
        needed = {character: character.encode() for character in set(string)}
        if self.byte_model is not None:
            lacking = [c for c, data in needed.items() if not all(byte in self._id_of_byte for byte in data)]
        else:
            lacking = [c for c, data in needed.items() if data not in self._characters and not self._falls_back(data)]
        return re.split(f"([{re.escape(''.join(lacking))}]+)", string) if lacking else [string]

    def _falls_back(self, character: bytes) -> bool:
        is_able = getattr(self.tokenizer.model, "byte_fallback", False)
        return is_able and all(byte in self._id_of_byte for byte in character)

    @cached_property
    def _characters(self) -> frozenset[bytes]:
        """Tokens that are short enough for a single character."""
        ids = np.flatnonzero(self._lengths_V1[:-1] <= 4).tolist()
        return frozenset(self.table.bytes_of(token_id) for token_id in ids)

    def _segment_runs(self, runs: Sequence[str]) -> Segmentation:
        """Of runs that are text to this tokenizer and runs that are not, in turn, beginning with one that is."""
        valid = runs[::2]
        segmentations = iter(self._segment_strings(valid, [run.encode() for run in valid]))
        parts: list[Placed] = []
        start = 0
        for index, run in enumerate(runs):
            data = run.encode("utf-8", "surrogateescape")
            if index % 2 == 0:
                found = next(segmentations)
                columns = (found.ids_M, found.starts_M + start, found.ends_M + start, found.is_known_M)
                parts.extend(zip(*(column.tolist() for column in columns), strict=True))
            else:
                placed = self._place_unwritable(run, data)
                parts.extend(
                    (token_id, start + first, start + end, is_known) for token_id, first, end, is_known in placed
                )
            start += len(data)
        return _segmentation(parts)

    def _place_unwritable(self, run: str, data: bytes) -> list[Placed]:
        """Of characters that the vocabulary lacks, or of bytes that are no text."""
        unknown_id = self.table.unknown_id
        if unknown_id is None:
            return self._place_bytes(data)
        if not _INVALID.search(run):
            ids = self._encode([run])[0].ids
            return [(token_id, 0, len(data), False) for token_id in ids if token_id == unknown_id]
        placed = self._place_bytes(data)
        return placed or [(unknown_id, 0, len(data), False)]

    def _place_bytes(self, data: bytes) -> list[Placed]:
        """Of bytes that are no text."""
        if self.byte_model is not None:
            ids = self.byte_model.encode(to_alphabet(data), add_special_tokens=False).ids
            tokens = [(token_id, self._bytes_of(token_id)) for token_id in ids]
            if b"".join(token for _, token in tokens) == data:
                return place_in_row(tokens)
        ids_of_data = ((self._id_of_byte.get(byte), place) for place, byte in enumerate(data))
        return [(token_id, place, place + 1, True) for token_id, place in ids_of_data if token_id is not None]

    def _bytes_of(self, token_id: int) -> bytes:
        return self.table.bytes_of(token_id) if token_id < self.table.size else b""

    def _encode(self, strings: Sequence[str], *, with_offsets: bool = False) -> list[Encoding]:
        encode = self.tokenizer.encode_batch if with_offsets else self.tokenizer.encode_batch_fast
        try:
            return encode(list(strings), add_special_tokens=False)
        except Exception:  # noqa: BLE001  the library raises plain Exception where a model without <unk> needs it
            # Text by text, so that only the text that cannot be written at all becomes a gap.
            return [Encoding()] if len(strings) == 1 else [self._encode([string])[0] for string in strings]


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    steps = (state_of(tokenizer.pre_tokenizer) or {}, state_of(tokenizer.normalizer) or {})
    members = chain(steps[0].get("pretokenizers", ()), steps[1].get("normalizers", ()))
    return any(member["type"] == "ByteLevel" for member in members)


def _ids_of_bytes(table: TokenTable) -> dict[int, int]:
    """The smallest id of every single byte."""
    lengths_V = np.diff(table.offsets_V1)
    ids = np.flatnonzero((lengths_V == 1) & (table.kinds_V == TokenKind.TEXT))
    return {table.blob[table.offsets_V1[token_id]]: int(token_id) for token_id in reversed(ids)}


def _segmentation(placed: Iterable[Placed]) -> Segmentation:
    columns = np.array(list(placed), np.int64).reshape(-1, 4)
    ids_M, starts_M, ends_M, is_known_M = np.ascontiguousarray(columns.T)
    return Segmentation(ids_M=ids_M, starts_M=starts_M, ends_M=ends_M, is_known_M=is_known_M.astype(np.bool_))
