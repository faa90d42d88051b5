"""Pairs a student's tokenizer with the teacher's: what needs the two tokenizers, and nothing else.

Knows nothing of end tokens, of requests, or of the process that it runs in.
"""

# U = student's ids, V = teacher's ids

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from preceptor.wire import VocabularyRelation

from preceptor_server.alignment.correspondence import (
    inverse,
    is_as_large,
    is_same_table,
    match,
    permutation,
    put_specials,
    relation_of,
    same_ids,
    shared_bytes,
)
from preceptor_server.alignment.first_tokens import FirstTokens, tokens_of
from preceptor_server.alignment.pairing_warnings import warnings_of
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.table_check import verify_added_tokens, verify_table
from preceptor_server.alignment.token_table import padded, token_table_of
from preceptor_server.alignment.tokenizer_file import Json, parse_tokenizer
from preceptor_server.alignment.tokenizer_parts import tokenizer_parts
from preceptor_server.alignment.types import NO_PLACE, IdMap, Pairing, TeacherVocabulary, TokenTable

_EMPTY = np.empty(0, np.int32)


def read_teacher(tokenizer_json: str, chat_template: str | None, *, vocabulary_size: int) -> TeacherVocabulary:
    """The teacher's side; `vocabulary_size` is its number of logits. Raises InvalidTokenizerError."""
    parts = parse_tokenizer(tokenizer_json)
    table = token_table_of(parts, vocabulary_size=vocabulary_size)
    _verified(tokenizer_json, parts, table)
    return TeacherVocabulary(table=table, parts=tokenizer_parts(parts, chat_template))


def own_pairing(teacher: TeacherVocabulary, *, vocabulary_size: int) -> Pairing:
    """Of a student whose tokenizer is the teacher's own; `vocabulary_size` is its number of logits, 0 = as many."""
    table = teacher.table
    student = table if vocabulary_size in (0, table.size) else padded(table, size=vocabulary_size)
    return Pairing(
        student=student,
        relation=VocabularyRelation.IDENTICAL if student is table else VocabularyRelation.PADDED,
        differences=(),
        teacher_of_student_U=same_ids(student, table),
        projection_V=same_ids(table, student),
        with_space_V=_EMPTY,
        without_space_V=_EMPTY,
        warnings=(),
    )


def pair(
    student_json: str,
    parts: Json | None = None,
    *,
    chat_template: str | None,
    vocabulary_size: int,
    teacher: TeacherVocabulary,
) -> Pairing:
    """The student's tokenizer against the teacher's; `vocabulary_size` is the student's number of logits, 0 = as many
    as its tokenizer has tokens. `parts` is the JSON where it is parsed already. Raises InvalidTokenizerError.
    """
    parts = parse_tokenizer(student_json) if parts is None else parts
    student = token_table_of(parts, vocabulary_size=vocabulary_size)
    differences = _differences(tokenizer_parts(parts, chat_template), teacher)
    segmenter = _verified(student_json, parts, student)
    first_tokens = FirstTokens(segmenter)
    relation, teacher_of_student_U = _relate(student, teacher.table, first_tokens)
    with_space_V, without_space_V = _EMPTY, _EMPTY
    if relation is VocabularyRelation.PERMUTED:
        projection_V = inverse(teacher_of_student_U, size=teacher.table.size)
    elif relation.is_one_to_one:
        projection_V = same_ids(teacher.table, student)
    else:
        projection_V, with_space_V, without_space_V = _project(teacher.table, student, first_tokens)
    return Pairing(
        student=student,
        relation=relation,
        differences=differences,
        teacher_of_student_U=teacher_of_student_U,
        projection_V=projection_V,
        with_space_V=with_space_V,
        without_space_V=without_space_V,
        warnings=warnings_of(
            relation, differences, teacher_of_student_U, student, teacher.table, lossy_steps=segmenter.lossy_steps
        ),
    )


def _verified(tokenizer_json: str, parts: Json, table: TokenTable) -> Segmenter:
    segmenter = Segmenter(tokenizer_json, table)
    verify_added_tokens(segmenter, parts)
    verify_table(segmenter)
    return segmenter


def _differences(parts: dict[str, str], teacher: TeacherVocabulary) -> tuple[str, ...]:
    return tuple(name for name, digest in parts.items() if digest != teacher.parts.get(name))


def _relate(student: TokenTable, teacher: TokenTable, first_tokens: FirstTokens) -> tuple[VocabularyRelation, IdMap]:
    """How the vocabularies relate, and the teacher's id of every student id."""
    if is_same_table(student, teacher):
        is_unpadded = student.size == teacher.size
        relation = VocabularyRelation.IDENTICAL if is_unpadded else VocabularyRelation.PADDED
        return relation, same_ids(student, teacher)
    if is_as_large(student, teacher):
        written = first_tokens.find(shared_bytes(student)).tolist()
        permuted_U = permutation(student, teacher, written=written)
        if permuted_U is not None:
            return VocabularyRelation.PERMUTED, permuted_U
    matched_U = match(student, teacher)
    return relation_of(matched_U, student), matched_U


def _project(teacher: TokenTable, student: TokenTable, first_tokens: FirstTokens) -> tuple[IdMap, IdMap, IdMap]:
    """The maps of the teacher's tokens as they are, with a space before them, and without theirs."""
    tokens = tokens_of(teacher)
    with_space = [b" " + token if token and not token.startswith(b" ") else b"" for token in tokens]
    without_space = [token[1:] if token.startswith(b" ") else b"" for token in tokens]
    # Most tokens with a space are tokens too, and each text is looked up once.
    texts = list(dict.fromkeys([*tokens, *with_space, *without_space]))
    first_id = dict(zip(texts, first_tokens.find(texts).tolist(), strict=True))
    projection_V = put_specials(_look_up(first_id, tokens), teacher, student)
    return projection_V, _look_up(first_id, with_space), _look_up(first_id, without_space)


def _look_up(first_id: dict[bytes, int], texts: Sequence[bytes]) -> IdMap:
    assert first_id.get(b"", NO_PLACE) == NO_PLACE, "no text has no first token"
    return np.array([first_id[text] for text in texts], np.int32)
