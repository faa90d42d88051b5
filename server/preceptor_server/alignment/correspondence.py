"""Which tokens of two vocabularies are the same: of the same bytes, or special ones of one text. Knows no tokenizer.

Where several ids share their bytes, the last is the one that a tokenizer writes: SentencePiece puts the tokens of
single bytes before the pieces, and added tokens stand at the end.
"""

# U = student's ids, V = teacher's ids

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from preceptor.wire import VocabularyRelation

from preceptor_server.alignment.types import NO_PLACE, IdMap, TokenKind, TokenTable


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A table, and what takes long to read from it."""

    table: TokenTable

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of every id."""
        return [self.table.blob[start:end] for start, end in pairwise(self.table.offsets_V1.tolist())]

    @cached_property
    def text_ids(self) -> list[int]:
        return np.flatnonzero(self.table.kinds_V == TokenKind.TEXT).tolist()

    @cached_property
    def id_of_token(self) -> dict[bytes, int]:
        """The last TEXT id of the same bytes: only TEXT ids have bytes."""
        ids = dict(zip(self.tokens, range(self.table.size), strict=True))
        ids.pop(b"", None)
        return ids


def is_same_table(one: TokenTable, other: TokenTable) -> bool:
    """Whether the ids stand for the same tokens, padding at the end aside."""
    size = _used_size(one)
    return (
        size == _used_size(other)
        and bool((one.kinds_V[:size] == other.kinds_V[:size]).all())
        and bool((one.offsets_V1[: size + 1] == other.offsets_V1[: size + 1]).all())
        and one.blob == other.blob
        and dict(one.special_texts) == dict(other.special_texts)
    )


def same_ids(source: TokenTable, target: TokenTable) -> IdMap:
    """For two vocabularies of the same table: every id to itself."""
    ids = np.arange(source.size, dtype=np.int32)
    ids[source.kinds_V == TokenKind.ABSENT] = NO_PLACE
    ids[target.size :] = NO_PLACE
    return ids


def match(source: Vocabulary, target: Vocabulary) -> IdMap:
    """For each id of the source, the target's last id of the same bytes or of the same special text."""
    # Ids that are not TEXT have no bytes, and no TEXT id has none.
    id_of_token = target.id_of_token
    ids = np.array([id_of_token.get(token, NO_PLACE) for token in source.tokens], np.int32)
    return put_specials(ids, source.table, target.table)


def is_matched(target_of_source: IdMap, source: TokenTable, target: Vocabulary) -> npt.NDArray[np.bool_]:
    """For each id of the target, whether the source has a token of its bytes or special text, given what `match` found
    for the other direction."""
    is_matched_V = np.zeros(target.table.size, np.bool_)
    is_matched_V[target_of_source[target_of_source != NO_PLACE]] = True
    is_last_V = np.zeros(target.table.size, np.bool_)
    is_last_V[list(target.id_of_token.values())] = True
    for token_id in np.flatnonzero((target.table.kinds_V == TokenKind.TEXT) & ~is_last_V).tolist():
        is_matched_V[token_id] = is_matched_V[target.id_of_token[target.tokens[token_id]]]
    texts = set(source.special_texts.values())
    for token_id, text in target.table.special_texts.items():
        is_matched_V[token_id] = text in texts
    return is_matched_V


def put_specials(ids: IdMap, source: TokenTable, target: TokenTable) -> IdMap:
    """By equal text. What one side writes for text that it lacks is not what the other lacks, so those never pair."""
    id_of_text = {text: token_id for token_id, text in target.special_texts.items() if token_id != target.unknown_id}
    for token_id, text in source.special_texts.items():
        ids[token_id] = NO_PLACE if token_id == source.unknown_id else id_of_text.get(text, NO_PLACE)
    return ids


def is_as_large(one: TokenTable, other: TokenTable) -> bool:
    """Whether they hold as many tokens of each kind, and as many bytes, as permutations of each other do."""
    counts = [np.bincount(table.kinds_V, minlength=len(TokenKind))[1:].tolist() for table in (one, other)]
    return counts[0] == counts[1] and len(one.blob) == len(other.blob)


def permutation(student: Vocabulary, teacher: Vocabulary, *, written: Sequence[int]) -> IdMap | None:
    """The one-to-one map of student ids to teacher ids; None where the two do not hold the same tokens, each as often.

    `written`: for those of the student's ids that share their bytes, the one that its tokenizer writes.
    """
    is_written = set(written)
    students = sorted(_keys(student), key=lambda entry: (entry[0], entry[1] in is_written, entry[1]))
    teachers = sorted(_keys(teacher))
    if [key for key, _ in students] != [key for key, _ in teachers]:
        return None
    ids = np.full(student.table.size, NO_PLACE, np.int32)
    ids[[token_id for _, token_id in students]] = [token_id for _, token_id in teachers]
    return ids


def inverse(ids: IdMap, *, size: int) -> IdMap:
    """Of a one-to-one map: from the ids that it leads to, of which there are `size`."""
    inverted = np.full(size, NO_PLACE, np.int32)
    sources = np.flatnonzero(ids != NO_PLACE)
    inverted[ids[sources]] = sources
    return inverted


def shared_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """The bytes that several ids stand for."""
    tokens = Counter(vocabulary.tokens)
    return [token for token, count in tokens.items() if count > 1 and token]


def relation_of(teacher_of_student_U: IdMap, student: TokenTable) -> VocabularyRelation:
    """Of two vocabularies whose ids do not correspond one to one."""
    is_common = (teacher_of_student_U != NO_PLACE) & (student.kinds_V == TokenKind.TEXT)
    return VocabularyRelation.OVERLAPPING if is_common.any() else VocabularyRelation.DISJOINT


def _used_size(table: TokenTable) -> int:
    used = np.flatnonzero(table.kinds_V != TokenKind.ABSENT)
    return int(used[-1]) + 1 if len(used) else 0


def _keys(vocabulary: Vocabulary) -> list[tuple[tuple[int, bytes], int]]:
    """Each token as what it is known by, and its id."""
    keys = [((int(TokenKind.TEXT), vocabulary.tokens[token_id]), token_id) for token_id in vocabulary.text_ids]
    special_texts = vocabulary.table.special_texts
    keys += [((int(TokenKind.SPECIAL), text.encode()), token_id) for token_id, text in special_texts.items()]
    return keys
