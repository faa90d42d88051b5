"""Makes an alignment of a pairing: which special tokens stand for each other, and what ends a response. Cheap.

All tokens that end a response are one event. The teacher's mass on any of its end tokens, and on the counterparts of
the student's, goes to END, whose place is the student's own end token.
"""

# U = student's vocabulary size, V = teacher's vocabulary size

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preceptor_server.alignment.special_warnings import warnings_of
from preceptor_server.alignment.types import (
    END,
    NO_PLACE,
    Alignment,
    IdMap,
    PairedTokens,
    Pairing,
    TeacherVocabulary,
    TokenKind,
    TokenTable,
)
from preceptor_server.errors import InvalidTokenizerError

AS_CONFIGURED = "as configured"
END_OF_RESPONSE = "end of response"
SAME_TEXT = "same text"

_MAX_NAMED = 8
"""Special tokens that a refusal names as examples."""


def align(
    pairing: Pairing,
    *,
    teacher: TeacherVocabulary,
    tokenizer_id: str,
    end_token_ids: tuple[int, ...],
    teacher_end_ids: tuple[int, ...],
    special_pairs: Mapping[str, str],
) -> Alignment:
    """`special_pairs` holds texts, the teacher's by the student's. Raises InvalidTokenizerError on ids and texts that
    do not exist."""
    end_ids = _end_ids(end_token_ids, pairing.student.size, field="end_token_ids")
    teacher_end_ids = _end_ids(teacher_end_ids, teacher.table.size, field="teacher_end_token_ids")
    ends = _Ends(student=end_ids, teacher=teacher_end_ids)
    configured = _resolve(special_pairs, student=pairing.student, teacher=teacher.table)
    counterparts = _of_pairing(pairing, [*pairing.student.special_texts, *end_ids]) | configured
    projection_V = _with_configured(pairing.projection_V, configured, teacher.table)
    projection_V = _with_ends(projection_V, ends, counterparts, pairing)
    special_to_teacher, reasons = _pair_specials(counterparts, configured, ends)
    masked_ids = tuple(i for i in sorted(pairing.student.special_texts) if i not in special_to_teacher)
    dropped_ids = tuple(i for i in sorted(teacher.table.special_texts) if projection_V[i] == NO_PLACE)
    is_mapped_U = pairing.teacher_of_student_U != NO_PLACE
    is_mapped_U[list(special_to_teacher)] = True
    return Alignment(
        tokenizer_id=tokenizer_id,
        pairing=pairing,
        projection_V=projection_V,
        special_to_teacher=special_to_teacher,
        student_end_ids=end_ids,
        teacher_end_ids=teacher_end_ids,
        paired=tuple(
            PairedTokens(student_id=student_id, teacher_id=special_to_teacher[student_id], reason=reasons[student_id])
            for student_id in sorted(special_to_teacher)
        ),
        masked_ids=masked_ids,
        dropped_ids=dropped_ids,
        unknown_read_as=None if pairing.student.unknown_id in special_to_teacher else teacher.table.unknown_id,
        mapped_share=_share(is_mapped_U, pairing.student),
        projected_share=_share(projection_V != NO_PLACE, teacher.table),
        warnings=pairing.warnings
        + warnings_of(
            pairing.student,
            teacher.table,
            student_ends=end_ids,
            teacher_ends=teacher_end_ids,
            configured=configured,
            masked_ids=masked_ids,
            dropped_ids=dropped_ids,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """What ends a response on either side."""

    student: tuple[int, ...]
    teacher: tuple[int, ...]


def _end_ids(ids: Iterable[int], size: int, *, field: str) -> tuple[int, ...]:
    """Each once, in the order given."""
    for token_id in ids:
        if not 0 <= token_id < size:
            message = f"{token_id} is not a token: the vocabulary has {size:,} entries, 0 to {size - 1:,}"
            raise InvalidTokenizerError(message, reason="TOKEN_OUT_OF_RANGE", field=field)
    return tuple(dict.fromkeys(ids))


def _resolve(pairs: Mapping[str, str], *, student: TokenTable, teacher: TokenTable) -> dict[int, int]:
    """The ids of configured pairs, by the student's."""
    student_ids, teacher_ids = _ids_by_text(student), _ids_by_text(teacher)
    configured: dict[int, int] = {}
    for index, (student_text, teacher_text) in enumerate(pairs.items()):
        field = f"special_pairs[{index}]"
        student_id = _find(student_text, student_ids, student, side="student", field=field)
        teacher_id = _find(teacher_text, teacher_ids, teacher, side="teacher", field=field)
        configured[student_id] = teacher_id
    return configured


def _ids_by_text(table: TokenTable) -> dict[str, int]:
    return {text: token_id for token_id, text in sorted(table.special_texts.items(), reverse=True)}


def _find(text: str, ids_by_text: dict[str, int], table: TokenTable, *, side: str, field: str) -> int:
    """The special token of this text, else the token that stands for just these bytes."""
    token_id = ids_by_text.get(text)
    if token_id is None:
        token_id = _find_text(text.encode(errors="surrogatepass"), table)
    if token_id is None:
        known = ", ".join(list(table.special_texts.values())[:_MAX_NAMED]) or "none"
        raise InvalidTokenizerError(
            f"the {side}'s tokenizer has no token {text!r}; its special tokens are {known}"
            + (", ..." if len(table.special_texts) > _MAX_NAMED else ""),
            reason="UNKNOWN_SPECIAL_TOKEN",
            field=f"{field}.{side}",
        )
    return token_id


def _find_text(data: bytes, table: TokenTable) -> int | None:
    is_so_V = (np.diff(table.offsets_V1) == len(data)) & (table.kinds_V == TokenKind.TEXT)
    return next((int(i) for i in np.flatnonzero(is_so_V) if table.bytes_of(int(i)) == data), None)


def _of_pairing(pairing: Pairing, student_ids: Iterable[int]) -> dict[int, int]:
    """Those that the pairing found a counterpart for, with it."""
    pairs = ((i, int(pairing.teacher_of_student_U[i])) for i in student_ids)
    return {student_id: teacher_id for student_id, teacher_id in pairs if teacher_id != NO_PLACE}


def _with_configured(projection_V: IdMap, configured: dict[int, int], teacher: TokenTable) -> IdMap:
    """Each configured teacher token goes to the student's, of several to the first; special tokens that went there
    because their text is the same lose their place."""
    if not configured:
        return projection_V
    projection_V = projection_V.copy()
    projection_V[np.isin(projection_V, list(configured)) & (teacher.kinds_V == TokenKind.SPECIAL)] = NO_PLACE
    for student_id, teacher_id in reversed(configured.items()):
        projection_V[teacher_id] = student_id
    return projection_V


def _with_ends(projection_V: IdMap, ends: _Ends, counterparts: dict[int, int], pairing: Pairing) -> IdMap:
    """END for every token in which the teacher ends, if the student's end is known; the map itself where END would
    change nothing, so that one end token on each side costs nothing."""
    if not ends.student:
        return projection_V
    in_class = {*ends.teacher, *(counterparts[i] for i in ends.student if i in counterparts)}
    if len(in_class) == len(ends.student) == 1 and pairing.relation.is_one_to_one:
        (student_end,), (teacher_end,) = ends.student, in_class
        if counterparts.get(student_end) == teacher_end and projection_V[teacher_end] == student_end:
            return projection_V
    projection_V = projection_V.copy()
    projection_V[list(in_class)] = END
    return projection_V


def _pair_specials(
    counterparts: dict[int, int], configured: dict[int, int], ends: _Ends
) -> tuple[dict[int, int], dict[int, str]]:
    """The teacher's token for each of the student's, and why."""
    paired = dict(counterparts)
    reasons = {i: AS_CONFIGURED if i in configured else SAME_TEXT for i in paired}
    if ends.teacher:
        for student_id in ends.student:
            # A pair that somebody asked for stands.
            if student_id not in configured and paired.get(student_id) not in ends.teacher:
                paired[student_id], reasons[student_id] = ends.teacher[0], END_OF_RESPONSE
    return paired, reasons


def _share(is_so: npt.NDArray[np.bool_], table: TokenTable) -> float:
    is_token = table.kinds_V != TokenKind.ABSENT
    return float(is_so[is_token].mean()) if is_token.any() else 0.0
