"""Which tokens of two vocabularies are the same: of the same bytes, or special ones of one text. Knows no tokenizer.

Where several ids share their bytes, the last is the one that a tokenizer writes: SentencePiece puts the tokens of
single bytes before the pieces, and added tokens stand at the end.
"""

# U = student's ids, V = teacher's ids

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from preceptor.wire import VocabularyRelation

from preceptor_server.alignment.first_tokens import tokens_of
from preceptor_server.alignment.types import NO_PLACE, IdMap, TokenKind, TokenTable


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


def match(source: TokenTable, target: TokenTable) -> IdMap:
    """For each id of the source, the target's last id of the same bytes or of the same special text."""
    text_ids = np.flatnonzero(target.kinds_V == TokenKind.TEXT).tolist()
    target_tokens = tokens_of(target)
    id_of_token = {target_tokens[token_id]: token_id for token_id in text_ids}
    # Ids that are not TEXT have no bytes, and no TEXT id has none.
    ids = np.array([id_of_token.get(token, NO_PLACE) for token in tokens_of(source)], np.int32)
    return put_specials(ids, source, target)


def put_specials(ids: IdMap, source: TokenTable, target: TokenTable) -> IdMap:
    id_of_text = {text: token_id for token_id, text in target.special_texts.items()}
    for token_id, text in source.special_texts.items():
        ids[token_id] = id_of_text.get(text, NO_PLACE)
    return ids


def is_as_large(one: TokenTable, other: TokenTable) -> bool:
    """Whether they hold as many tokens of each kind, and as many bytes, as permutations of each other do."""
    counts = [np.bincount(table.kinds_V, minlength=len(TokenKind))[1:].tolist() for table in (one, other)]
    return counts[0] == counts[1] and len(one.blob) == len(other.blob)


def permutation(student: TokenTable, teacher: TokenTable, *, written: Sequence[int]) -> IdMap | None:
    """The one-to-one map of student ids to teacher ids; None where the two do not hold the same tokens, each as often.

    `written`: for those of the student's ids that share their bytes, the one that its tokenizer writes.
    """
    is_written = set(written)
    students = sorted(_keys(student), key=lambda entry: (entry[0], entry[1] in is_written, entry[1]))
    teachers = sorted(_keys(teacher))
    if [key for key, _ in students] != [key for key, _ in teachers]:
        return None
    ids = np.full(student.size, NO_PLACE, np.int32)
    ids[[token_id for _, token_id in students]] = [token_id for _, token_id in teachers]
    return ids


def inverse(ids: IdMap, *, size: int) -> IdMap:
    """Of a one-to-one map: from the ids that it leads to, of which there are `size`."""
    inverted = np.full(size, NO_PLACE, np.int32)
    sources = np.flatnonzero(ids != NO_PLACE)
    inverted[ids[sources]] = sources
    return inverted


def shared_bytes(table: TokenTable) -> list[bytes]:
    """The bytes that several ids stand for."""
    tokens = Counter(tokens_of(table))
    return [token for token, count in tokens.items() if count > 1 and token]


def relation_of(teacher_of_student_U: IdMap, student: TokenTable) -> VocabularyRelation:
    """Of two vocabularies whose ids do not correspond one to one."""
    is_common = (teacher_of_student_U != NO_PLACE) & (student.kinds_V == TokenKind.TEXT)
    return VocabularyRelation.OVERLAPPING if is_common.any() else VocabularyRelation.DISJOINT


def _used_size(table: TokenTable) -> int:
    used = np.flatnonzero(table.kinds_V != TokenKind.ABSENT)
    return int(used[-1]) + 1 if len(used) else 0


def _keys(table: TokenTable) -> list[tuple[tuple[int, bytes], int]]:
    """Each token as what it is known by, and its id."""
    tokens = tokens_of(table)
    text_ids = np.flatnonzero(table.kinds_V == TokenKind.TEXT).tolist()
    keys = [((int(TokenKind.TEXT), tokens[token_id]), token_id) for token_id in text_ids]
    keys += [((int(TokenKind.SPECIAL), text.encode()), token_id) for token_id, text in table.special_texts.items()]
    return keys
