"""Pairs a student's tokenizer with the teacher's: what needs the two tokenizers, and nothing else.

Knows nothing of end tokens, of requests, or of the process that it runs in.
"""

# U = student's ids, V = teacher's ids

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from preceptor.wire import VocabularyRelation

from preceptor_server.alignment.correspondence import (
    Vocabulary,
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
from preceptor_server.alignment.first_tokens import FirstTokens, Text, as_text
from preceptor_server.alignment.pairing_warnings import warnings_of
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.table_check import verify_added_tokens, verify_table
from preceptor_server.alignment.token_table import padded, token_table_of
from preceptor_server.alignment.tokenizer_file import Json, parse_tokenizer
from preceptor_server.alignment.tokenizer_parts import tokenizer_parts
from preceptor_server.alignment.types import IMPOSSIBLE, NO_PLACE, IdMap, Pairing, TeacherVocabulary, TokenTable

_EMPTY = np.empty(0, np.int32)
_SPACE = ord(" ")
_Ids = npt.NDArray[np.int64]


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
    as its tokenizer has tokens. `parts` is the JSON where it is parsed already, and loses its model here. Raises
    InvalidTokenizerError.
    """
    parts = parse_tokenizer(student_json) if parts is None else parts
    student = token_table_of(parts, vocabulary_size=vocabulary_size)
    differences = _differences(tokenizer_parts(parts, chat_template), teacher)
    # It takes as much memory as what the library makes of it next.
    del parts["model"]
    segmenter = _verified(student_json, parts, student)
    first_tokens, known = FirstTokens(segmenter), Vocabulary(teacher.table)
    relation, teacher_of_student_U = _relate(student, known, first_tokens)
    with_space_V, without_space_V = _EMPTY, _EMPTY
    if relation is VocabularyRelation.PERMUTED:
        projection_V = inverse(teacher_of_student_U, size=teacher.table.size)
    elif relation.is_one_to_one:
        projection_V = same_ids(teacher.table, student)
    else:
        projection_V, with_space_V, without_space_V = _project(known, student, first_tokens)
    return Pairing(
        student=student,
        relation=relation,
        differences=differences,
        teacher_of_student_U=teacher_of_student_U,
        projection_V=projection_V,
        with_space_V=with_space_V,
        without_space_V=without_space_V,
        warnings=warnings_of(
            relation, differences, teacher_of_student_U, student, known, lossy_steps=segmenter.lossy_steps
        ),
    )


def _verified(tokenizer_json: str, parts: Json, table: TokenTable) -> Segmenter:
    segmenter = Segmenter(tokenizer_json, table)
    verify_added_tokens(segmenter, parts)
    verify_table(segmenter)
    return segmenter


def _differences(parts: dict[str, str], teacher: TeacherVocabulary) -> tuple[str, ...]:
    return tuple(name for name, digest in parts.items() if digest != teacher.parts.get(name))


def _relate(student: TokenTable, teacher: Vocabulary, first_tokens: FirstTokens) -> tuple[VocabularyRelation, IdMap]:
    """How the vocabularies relate, and the teacher's id of every student id."""
    if is_same_table(student, teacher.table):
        is_unpadded = student.size == teacher.table.size
        relation = VocabularyRelation.IDENTICAL if is_unpadded else VocabularyRelation.PADDED
        return relation, same_ids(student, teacher.table)
    known = Vocabulary(student)
    if is_as_large(student, teacher.table):
        written = first_tokens.find([as_text(data) for data in shared_bytes(known)]).tolist()
        permuted_U = permutation(known, teacher, written=written)
        if permuted_U is not None:
            return VocabularyRelation.PERMUTED, permuted_U
    matched_U = match(known, teacher)
    return relation_of(matched_U, student), matched_U


def _project(teacher: Vocabulary, student: TokenTable, first_tokens: FirstTokens) -> tuple[IdMap, IdMap, IdMap]:
    """The maps of the teacher's tokens as they are, with a space before them, and without theirs."""
    texts = [as_text(token) for token in teacher.tokens]
    first_V = first_tokens.find(texts)
    plain_V, spaced_V, rest_V = _spaces(teacher)
    with_space_V = np.full(len(texts), NO_PLACE, np.int32)
    without_space_V = np.full(len(texts), IMPOSSIBLE, np.int32)
    # Most tokens with a space are tokens without it too, and each text is looked up once.
    is_pair = rest_V != NO_PLACE
    without_space_V[spaced_V[is_pair]] = first_V[rest_V[is_pair]]
    with_space_V[rest_V[is_pair]] = first_V[spaced_V[is_pair]]
    is_left_V = np.ones(len(texts), np.bool_)
    is_left_V[rest_V[is_pair]] = False
    lonely = plain_V[is_left_V[plain_V]].tolist()
    with_space_V[lonely] = first_tokens.find([_with_space(texts[token_id]) for token_id in lonely])
    lonely = spaced_V[~is_pair].tolist()
    without_space_V[lonely] = first_tokens.find([texts[token_id][1:] for token_id in lonely])
    with_space_V[spaced_V] = NO_PLACE
    return put_specials(first_V, teacher.table, student), with_space_V, without_space_V


def _spaces(teacher: Vocabulary) -> tuple[_Ids, _Ids, _Ids]:
    """The teacher's tokens that begin with no space, those that do, and for each of the latter the token without it."""
    table = teacher.table
    text_ids = np.array(teacher.text_ids, np.int64)
    is_spaced = np.frombuffer(table.blob, np.uint8)[table.offsets_V1[text_ids]] == _SPACE
    spaced_V = text_ids[is_spaced]
    find = teacher.id_of_token.get
    rest_V = np.array([find(teacher.tokens[token_id][1:], NO_PLACE) for token_id in spaced_V.tolist()], np.int64)
    return text_ids[~is_spaced], spaced_V, rest_V


def _with_space(text: Text) -> Text:
    return " " + text if isinstance(text, str) else b" " + text
