"""What docs/alignment.md says that a response's scores are, worked out token by token with dictionaries.

Slow and plain: it knows the tokenizers by their library alone, and shares no code with the server. It is for
vocabularies that write bytes in GPT-2's alphabet, and for those that write a space as a character of its own, with or
without a token for each byte.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from preceptor.wire import PositionStatus
from tokenizers import Tokenizer

from tests.unit.server.alignment.tokenizers_for_tests import Parts

Distribution = Callable[[tuple[int, ...]], Sequence[float]]
"""The teacher's probabilities of its tokens after the ids that it read."""
SPACE, BLOCK = " ", "\u2581"


@dataclass(frozen=True)
class Piece:
    """A token that a tokenizer wrote for the bytes [start, end) of a text."""

    token: int
    start: int
    end: int
    is_known: bool
    """Whether it stands for just these bytes: one for the unknown does not."""


class Library:
    """A tokenizer as its library knows it, in the middle of a text: nothing put in front, nothing normalised."""

    def __init__(self, tokenizer_json: str) -> None:
        parts = json.loads(tokenizer_json)
        model = parts["model"]
        self.is_byte_level = "ByteLevel" in json.dumps(parts["decoder"])
        vocabulary = model["vocab"]
        is_unigram = isinstance(vocabulary, list)
        self.pieces = dict(enumerate(piece for piece, _ in vocabulary)) if is_unigram else _by_id(vocabulary)
        self.specials = {token["id"]: token["content"] for token in parts["added_tokens"] if token["special"]}
        self.texts = {token["id"]: token["content"] for token in parts["added_tokens"] if not token["special"]}
        self.size = max({*self.pieces, *self.specials, *self.texts}) + 1
        self.unknown: int | None = model.get("unk_id") if is_unigram else vocabulary.get(model.get("unk_token"))
        self.falls_back = bool(model.get("byte_fallback")) and "ByteFallback" in json.dumps(parts["decoder"])
        self.bytes = {token: self._bytes(token) for token in range(self.size)}
        self.has_every_byte = self._has_every_byte()
        if self.unknown is not None:
            self.specials[self.unknown] = self.pieces[self.unknown]
            self.bytes[self.unknown] = b""
        self._tokenizer = Tokenizer.from_str(json.dumps(_in_the_middle(parts)))
        self._tokenizer.encode_special_tokens = True
        self._firsts: dict[bytes, int | None] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def cut(self, text: str) -> list[Piece]:
        """The tokens of a text, in their places."""
        if self.is_byte_level:
            return self._row(self.encode(text), 0)
        cut, start, unwritable = [], 0, self._unwritable(text)
        # What stands on both sides of a character that it cannot write is never one token.
        for is_unwritable, characters in groupby(text, unwritable.__contains__):
            run = "".join(characters)
            cut += self._unknowns(run, start) if is_unwritable else self._row(self.encode(run), start)
            start += len(run.encode())
        return cut

    def first(self, data: bytes) -> int | None:
        """The first token of bytes that something follows; None where that is not one that begins them."""
        if data not in self._firsts:
            self._firsts[data] = self._first(data)
        return self._firsts[data]

    def _first(self, data: bytes) -> int | None:
        text = _valid_beginning(data)
        is_whole = len(text.encode()) == len(data)
        if self.is_byte_level and not is_whole:
            # A part of a character is cut as the model alone cuts it.
            letters = "".join(_LETTERS[byte] for byte in data)
            return self._row(Tokenizer(self._tokenizer.model).encode(letters).ids, 0)[0].token
        if not data:
            return None
        if self.falls_back and not text:
            return next((token for token, piece in self.pieces.items() if piece == f"<0x{data[0]:02X}>"), None)
        if is_whole and len(text) > 1 and text[-1].isspace():
            token = self._begins(text + "x", data)
            if token is not None:
                return token
        return self._begins(text, data)

    def _begins(self, text: str, data: bytes) -> int | None:
        cut = self.cut(text)
        found = cut[0] if cut else None
        is_one = found is not None and found.is_known and found.end <= len(data)
        return found.token if is_one and found is not None else None

    def _row(self, ids: Sequence[int], start: int) -> list[Piece]:
        cut = []
        for token in ids:
            end = start + len(self.bytes[token])
            cut.append(Piece(token, start, end, is_known=True))
            start = end
        return cut

    def _unknowns(self, run: str, start: int) -> list[Piece]:
        """As many as the library writes for the run, which share it."""
        ids = self.encode(run) if self.unknown is not None else []
        return [Piece(token, start, start + len(run.encode()), is_known=False) for token in ids]

    def _unwritable(self, text: str) -> set[str]:
        known = {data for token, data in self.bytes.items() if token not in self.texts}
        lacking = {c for c in set(text) if c.encode() not in known}
        if self.falls_back:
            lacking = {c for c in lacking if not all(f"<0x{b:02X}>" in self.pieces.values() for b in c.encode())}
        return lacking

    def _bytes(self, token: int) -> bytes:
        if token in self.specials:
            return b""
        if token in self.texts:
            content: str = self.texts[token]
            return (content if self.is_byte_level else content.replace(BLOCK, SPACE)).encode()
        piece = self.pieces.get(token, "")
        if self.is_byte_level:
            return bytes(_ALPHABET[c] for c in piece)
        byte = re.fullmatch("<0x(..)>", piece) if self.falls_back else None
        return bytes.fromhex(byte[1]) if byte else piece.replace(BLOCK, SPACE).encode()

    def _has_every_byte(self) -> bool:
        """Of those that UTF-8 uses."""
        used = {*range(0x80, 0xC0), *range(0xC2, 0xF5)}
        single = {data[0] for data in self.bytes.values() if len(data) == 1}
        return used <= single and (self.falls_back or (self.is_byte_level and set(range(0x80)) <= single))


@dataclass
class Score:
    """What is known of one position."""

    status: PositionStatus
    masses: dict[int, float] = field(default_factory=dict)
    """The teacher's mass on each of the student's tokens; what is missing to 1 is tail."""


@dataclass(kw_only=True)
class BruteForce:
    """Two strangers. Ends are ids of either side."""

    student: Library
    teacher: Library
    student_ends: tuple[int, ...] = ()
    teacher_ends: tuple[int, ...] = ()

    def score(self, ids: Sequence[int], distribution: Distribution) -> tuple[list[int], list[Score]]:
        """What the teacher reads for a response, and each position's score. `distribution` is the teacher."""
        read, pieces, is_special = self._read(ids)
        scores, start = [], 0
        for index, token in enumerate(ids):
            if is_special[index]:
                scores.append(self._score_special(token, index, read, distribution))
                continue
            end = start + len(self.student.bytes[token])
            scores.append(self._score_text(token, start, end, read, pieces, distribution))
            start = end
        return [token for token, _, _ in read], scores

    def _read(self, ids: Sequence[int]) -> tuple[list[tuple[int, Piece | None, int]], bytes, list[bool]]:
        """(the teacher's token, its place if it is text, the student's position if that has it as counterpart) in the
        order of reading; all bytes of text; which positions are not text."""
        is_special = [token in self.student_ends or not self.student.bytes[token] for token in ids]
        read: list[tuple[int, Piece | None, int]] = []
        data, run = b"", b""
        for index, token in enumerate([*ids, None]):
            if token is not None and not is_special[index]:
                run += self.student.bytes[token]
                continue
            for piece in self.teacher.cut(run.decode()):
                moved = Piece(piece.token, piece.start + len(data), piece.end + len(data), piece.is_known)
                read.append((piece.token, moved, -1))
            data, run = data + run, b""
            counterpart = None if token is None else self._counterpart(token)
            if counterpart is not None:
                read.append((counterpart, None, index))
        return read, data, is_special

    def _counterpart(self, token: int) -> int | None:
        if self.is_unknown(self.student, token):
            return self.teacher.unknown if not self.teacher.has_every_byte else None
        texts = {
            text: other for other, text in self.teacher.specials.items() if not self.is_unknown(self.teacher, other)
        }
        same = texts.get(self.student.specials.get(token, ""))
        if token in self.student_ends and self.teacher_ends and same not in self.teacher_ends:
            return self.teacher_ends[0]
        return same

    @staticmethod
    def is_unknown(side: Library, token: int) -> bool:
        """Whether it is what becomes of text that the side cannot write."""
        return token == side.unknown and not side.has_every_byte

    def _score_special(
        self, token: int, index: int, read: list[tuple[int, Piece | None, int]], distribution: Distribution
    ) -> Score:
        rows = [row for row, (_, _, position) in enumerate(read) if position == index]
        if not rows or (self.is_unknown(self.student, token) and token not in self.student_ends):
            return Score(PositionStatus.SPECIAL)
        return self._project(token, rows[0], rows[0] + 1, read, distribution, self._place_plain)

    def _score_text(
        self,
        token: int,
        start: int,
        end: int,
        read: list[tuple[int, Piece | None, int]],
        data: bytes,
        distribution: Distribution,
    ) -> Score:
        row, place = self._row_of(start, end, read, data)
        if row is None or place is None:
            is_written = any(p and p.is_known and p.start <= start < p.end for _, p, _ in read)
            return Score(PositionStatus.MISALIGNED if is_written else PositionStatus.UNMAPPED)
        last, reached = row, _piece(read[row]).start
        while last < len(read) and reached < end:
            piece = read[last][1]
            if piece is None or not piece.is_known or piece.start != reached:
                return Score(PositionStatus.UNMAPPED)
            last, reached = last + 1, piece.end
        return self._project(token, row, last, read, distribution, place)

    def _row_of(
        self, start: int, end: int, read: list[tuple[int, Piece | None, int]], data: bytes
    ) -> tuple[int | None, Callable[[int, int], int | None] | None]:
        """The teacher's token that answers for the student's [start, end), and where tokens of its row land."""
        for row, (_, piece, _) in enumerate(read):
            if piece is None or not piece.is_known:
                continue
            if piece.start == start:
                return row, self._place_plain
            following = read[row + 1][1] if row + 1 < len(read) else None
            begins_before = piece.start < start < piece.end
            if begins_before and piece.end == start + 1 < end and data[start : start + 1] == b" ":
                # The student's token goes on behind the space that ends the teacher's.
                if following is not None and following.is_known and following.start == piece.end:
                    return row + 1, self._place_with_space
                # There the student's token reaches over what the teacher cannot write.
                return None, None
            if begins_before and start == piece.start + 1 and data[piece.start : start] == b" ":
                return row, self._place_without_space
        return None, None

    def _place_plain(self, token: int, sampled: int) -> int | None:
        same = {text: own for own, text in self.student.specials.items() if not self.is_unknown(self.student, own)}
        counterparts = [self._counterpart(end) for end in self.student_ends]
        if self.student_ends and token in (*self.teacher_ends, *counterparts):
            return sampled if sampled in self.student_ends else self.student_ends[0]
        if token in self.teacher.specials:
            return None if self.is_unknown(self.teacher, token) else same.get(self.teacher.specials[token])
        return self.student.first(self.teacher.bytes[token])

    def _place_with_space(self, token: int, sampled: int) -> int | None:
        data = self.teacher.bytes[token]
        return self.student.first(b" " + data) if data and not data.startswith(b" ") else None

    def _place_without_space(self, token: int, sampled: int) -> int | None:
        return self.student.first(self.teacher.bytes[token][1:]) if self._begins_with_space(token) else None

    def _begins_with_space(self, token: int) -> bool:
        return self.teacher.bytes[token].startswith(b" ")

    def _project(
        self,
        sampled: int,
        row: int,
        last: int,
        read: list[tuple[int, Piece | None, int]],
        distribution: Distribution,
        place: Callable[[int, int], int | None],
    ) -> Score:
        ids = tuple(token for token, _, _ in read)
        masses = dict(enumerate(distribution(ids[:row])))
        path = math.prod(distribution(ids[:m])[ids[m]] for m in range(row, last))
        if place == self._place_without_space:
            # The space is written: whatever begins otherwise is impossible.
            masses = {token: mass for token, mass in masses.items() if self._begins_with_space(token)}
            total = sum(masses.values())
            masses, path = {token: mass / total for token, mass in masses.items()}, path / total
        landed: defaultdict[int | None, float] = defaultdict(float)
        for token, mass in masses.items():
            landed[place(token, sampled)] += mass
        next_place = place(ids[row], sampled)
        if next_place != sampled:
            landed[next_place] -= path
            landed[sampled] += path
        landed.pop(None, None)
        return Score(PositionStatus.OK, {own: mass for own, mass in landed.items() if own is not None})


def _piece(entry: tuple[int, Piece | None, int]) -> Piece:
    assert entry[1] is not None
    return entry[1]


def _by_id(vocabulary: dict[str, int]) -> dict[int, str]:
    return {token: piece for piece, token in vocabulary.items()}


def _in_the_middle(parts: Parts) -> Parts:
    pre_tokenizer = parts["pre_tokenizer"]
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer and "pretokenizers" in pre_tokenizer else [pre_tokenizer]
    kept = [dict(step) for step in steps if step and step["type"] != "WhitespaceSplit"]
    for step in kept:
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    normalizer = json.dumps(parts["normalizer"])
    signs = {"type": "Replace", "pattern": {"String": SPACE}, "content": BLOCK}
    return parts | {
        "normalizer": signs if '"Replace"' in normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": kept} if kept else None,
        "post_processor": None,
    }


def _valid_beginning(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()


def _alphabet() -> dict[str, int]:
    """GPT-2's: printable Latin-1 for itself, other bytes from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _alphabet()
_LETTERS = {byte: letter for letter, byte in _ALPHABET.items()}
