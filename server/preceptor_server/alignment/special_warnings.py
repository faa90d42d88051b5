"""What special tokens and end tokens mean for training, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from preceptor_server.alignment.types import TokenKind, TokenTable

_MAX_EXAMPLES = 3


def warnings_of(
    student: TokenTable,
    teacher: TokenTable,
    *,
    student_ends: Sequence[int],
    teacher_ends: Sequence[int],
    configured: Mapping[int, int],
    masked_ids: Sequence[int],
    dropped_ids: Sequence[int],
) -> tuple[str, ...]:
    """`configured` are the pairs that the caller asked for, by the student's id; masked and dropped tokens have no
    counterpart."""
    return (
        *_of_ends(student, teacher, student_ends=student_ends, teacher_ends=teacher_ends),
        *_of_text_read_as_special(student, configured, student_ends=student_ends),
        *_of_unknown(student, teacher, masked_ids=masked_ids, dropped_ids=dropped_ids),
        *_of_lonely(
            student,
            teacher,
            masked_ids=[token_id for token_id in masked_ids if token_id != student.unknown_id],
            dropped_ids=[token_id for token_id in dropped_ids if token_id != teacher.unknown_id],
        ),
    )


def name_of(table: TokenTable, token_id: int) -> str:
    """A token's text, else its id."""
    if token_id in table.special_texts:
        return table.special_texts[token_id]
    if table.kinds_V[token_id] == TokenKind.TEXT:
        return repr(table.bytes_of(token_id).decode(errors="replace"))
    return f"id {token_id}"


def _of_ends(
    student: TokenTable, teacher: TokenTable, *, student_ends: Sequence[int], teacher_ends: Sequence[int]
) -> Iterator[str]:
    student_names, teacher_names = _names(student, student_ends), _names(teacher, teacher_ends)
    if not student_ends:
        yield (
            "it is not known what ends the student's responses: the teacher's end tokens count as other special tokens "
            "do, and may have no place. Send end_token_ids, so that the student learns where to stop"
        )
    if not teacher_ends:
        yield (
            "it is not known what ends the teacher's responses: the student is not told where to stop, unless by a "
            "token of the same text. Send teacher_end_token_ids"
        )
    if student_ends and teacher_ends and student_names != teacher_names:
        yield (
            f"the student ends with {student_names}, the teacher with {teacher_names}: the teacher's end mass is "
            f"reported under {name_of(student, student_ends[0])}"
            + (", or the one that the student wrote" if len(student_ends) > 1 else "")
        )
    for side, table, ends in (("student", student, student_ends), ("teacher", teacher, teacher_ends)):
        for end in ends:
            if table.kinds_V[end] == TokenKind.ABSENT:
                yield f"the {side}'s end token {end} is padding of its vocabulary, which nothing is written with"
    for end in student_ends:
        if student.kinds_V[end] == TokenKind.TEXT:
            yield (
                f"{name_of(student, end)} ends the student's responses and is plain text to its tokenizer: the teacher "
                "reads each one as an end. Leave it out of end_token_ids if the student also writes it elsewhere"
            )


def _of_text_read_as_special(
    student: TokenTable, configured: Mapping[int, int], *, student_ends: Sequence[int]
) -> Iterator[str]:
    for student_id in configured:
        if student.kinds_V[student_id] == TokenKind.TEXT and student_id not in student_ends:
            yield (
                f"{name_of(student, student_id)} is paired and is plain text to the student's tokenizer: the teacher's "
                "mass goes to it, but where the student wrote it the teacher reads its characters. Mark it as special "
                "in the student's tokenizer to change that"
            )


def _of_unknown(
    student: TokenTable, teacher: TokenTable, *, masked_ids: Sequence[int], dropped_ids: Sequence[int]
) -> Iterator[str]:
    own, theirs = student.unknown_id, teacher.unknown_id
    if own is not None and own in masked_ids:
        yield (
            f"text that the student's tokenizer lacks becomes {name_of(student, own)}, and nobody knows "
            "which text it was: where one stands nothing is learnt, and a prompt of ids that holds one is refused"
        )
    if theirs is not None and theirs in dropped_ids:
        yield (
            f"text that the teacher's tokenizer lacks reaches the teacher as {name_of(teacher, theirs)}: "
            "the student's tokens of it are not scored"
        )


def _of_lonely(
    student: TokenTable, teacher: TokenTable, *, masked_ids: Sequence[int], dropped_ids: Sequence[int]
) -> Iterator[str]:
    if masked_ids:
        examples = _names(student, masked_ids, separator=", ")
        yield (
            f"{_count(masked_ids)} of the student {_have(masked_ids)} no counterpart, e.g. {examples}: where one "
            "stands nothing is learnt, and the teacher does not see it. Pair those that matter in special_pairs"
        )
    if dropped_ids:
        examples = _names(teacher, dropped_ids, separator=", ")
        yield (
            f"{_count(dropped_ids)} of the teacher {_have(dropped_ids)} no place in the student's vocabulary, e.g. "
            f"{examples}: mass on one counts as tail. Pair those that the teacher writes in special_pairs"
        )


def _names(table: TokenTable, ids: Sequence[int], *, separator: str = " and ") -> str:
    names = separator.join(name_of(table, token_id) for token_id in ids[:_MAX_EXAMPLES])
    return names + (", ..." if len(ids) > _MAX_EXAMPLES else "")


def _count(ids: Sequence[int]) -> str:
    return "1 special token" if len(ids) == 1 else f"{len(ids):,} special tokens"


def _have(ids: Sequence[int]) -> str:
    return "has" if len(ids) == 1 else "have"
