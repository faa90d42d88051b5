"""What flows through alignment: token tables, maps between two vocabularies, a registered student. Numpy only.

A `TokenTable` says which bytes each id stands for. A `Pairing` holds what depends on two tokenizers alone, and is
costly to make; an `Alignment` adds end tokens and special pairs, and is cheap. Both are made once per student and
never changed.
"""

# U = student's vocabulary size (its logits), V = teacher's vocabulary size (its logits)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from preceptor.wire import VocabularyRelation

IdMap = npt.NDArray[np.int32]
"""Indexed by an id of one vocabulary: an id of the other, or NO_PLACE, or END, or IMPOSSIBLE."""

NO_PLACE = -1
"""In an IdMap: the token has no counterpart."""
END = -2
"""In `Alignment.projection_V`: an end token, whose place is the student's own end token at that position."""
IMPOSSIBLE = -3
"""In `Pairing.without_space_V`: the token begins with no space, so it cannot stand where a space has been written."""


class TokenKind(IntEnum):
    """What an id stands for."""

    ABSENT = 0
    """No token: padding of the vocabulary."""
    TEXT = 1
    """Bytes of text; an added token that is not special too."""
    SPECIAL = 2
    """A role, such as the end of a turn. It stands for no bytes, though it has a text to be named by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenTable:
    """The bytes of every token of a tokenizer, ids 0 to its largest."""

    kinds_V: npt.NDArray[np.uint8]
    """Values of TokenKind."""
    blob: bytes
    """All tokens' bytes in the order of their ids."""
    offsets_V1: npt.NDArray[np.int64]
    """The bytes of id i are blob[offsets_V1[i] : offsets_V1[i + 1]]; none unless its kind is TEXT."""
    special_texts: Mapping[int, str]
    """The text of every SPECIAL token, by id."""
    unknown_id: int | None = None
    """The SPECIAL token that the tokenizer writes for text which its vocabulary lacks: nobody can tell for which. None
    where there is none, and where the vocabulary can write every text, so that no text ever becomes it."""

    @property
    def size(self) -> int:
        return len(self.kinds_V)

    def bytes_of(self, token_id: int) -> bytes:
        return self.blob[self.offsets_V1[token_id] : self.offsets_V1[token_id + 1]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherVocabulary:
    """The teacher's side of a pairing, read once when the server starts."""

    table: TokenTable
    """As large as the model's logits: V entries."""
    parts: Mapping[str, str]
    """A digest of each part of the tokenizer that is compared: "merges", "normalizer", "pre_tokenizer",
    "added_tokens", "chat_template"."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairing:
    """A student's tokenizer against the teacher's."""

    student: TokenTable
    relation: VocabularyRelation
    differences: tuple[str, ...]
    """Parts of the two tokenizer.json that differ although the vocabularies may not: "merges", "normalizer",
    "pre_tokenizer", "added_tokens", "chat_template"."""
    teacher_of_student_U: IdMap
    """For each student id, the teacher id of the same bytes (TEXT), or of the same text (SPECIAL), else NO_PLACE."""
    projection_V: IdMap
    """For each teacher id, where its mass goes: where ids correspond one to one, the student id that it corresponds
    to; else, for TEXT, the first token that the student's tokenizer cuts its bytes into, and for SPECIAL the student's
    special token of the same text. END does not occur here."""
    with_space_V: IdMap
    """The same for a space and the token's bytes: what a student token that begins with the space, which the teacher
    wrote into the token before, projects from. Empty where ids correspond one to one."""
    without_space_V: IdMap
    """The same for the token's bytes without the space that they begin with: NO_PLACE where nothing is left, IMPOSSIBLE
    where they begin with none. Empty where ids correspond one to one."""
    warnings: tuple[str, ...]
    """In plain words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTokens:
    """A special token of the student, and the teacher's that stands for it."""

    student_id: int
    teacher_id: int
    reason: str
    """"same text", "end of response" or "as configured"."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """A registered student: how its ids read in the teacher's vocabulary, and the teacher's in its."""

    tokenizer_id: str
    """What requests name it by: the tokenizer's fingerprint, or that of the tokenizer with its end tokens and pairs."""
    pairing: Pairing
    projection_V: IdMap
    """As in the pairing, with end tokens as END and configured pairs put in."""
    special_to_teacher: Mapping[int, int]
    """For each special token of the student that has one, the teacher's; its end tokens among them."""
    student_end_ids: tuple[int, ...]
    """The one that the teacher's end mass is reported under first; empty where none is known."""
    teacher_end_ids: tuple[int, ...]
    """The one that stands for the student's end in the teacher's reading first."""
    paired: tuple[PairedTokens, ...]
    masked_ids: tuple[int, ...]
    """Special tokens of the student without a counterpart."""
    dropped_ids: tuple[int, ...]
    """Special tokens of the teacher without one."""
    unknown_read_as: int | None
    """What the teacher reads, unscored, where the student's token for the unknown stands: its own, which is for text
    that it lacks too. None where it has none, or where the two are paired."""
    mapped_share: float
    """Share of the student's vocabulary with a counterpart, in [0, 1]."""
    projected_share: float
    """Share of the teacher's vocabulary with a place in the student's, in [0, 1]."""
    warnings: tuple[str, ...]

    @property
    def merges_end_tokens(self) -> bool:
        """Whether the teacher's end mass has to be moved or summed at all."""
        return bool((self.projection_V == END).any())
