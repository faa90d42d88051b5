"""Says in plain words what to know about a pairing. Knows its maps, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from preceptor.wire import VocabularyRelation

from preceptor_server.alignment.correspondence import Vocabulary, is_matched
from preceptor_server.alignment.types import NO_PLACE, IdMap, TokenKind, TokenTable

_NAMED_TOKENS = 5
"""Tokens that a warning quotes."""
_ENOUGH = 0.5
"""Share of the student's vocabulary with a counterpart, below which most of its tokens are reached by cutting only."""

_DIFFERENCES = {
    "merges": "the merges differ: the tokenizers may cut the same text into other tokens",
    "pre_tokenizer": "the pre-tokenizers differ: the tokenizers may cut the same text into other tokens",
    "normalizer": "the normalizers differ: the tokenizers may change a text in different ways before they cut it",
    "added_tokens": "the added tokens differ in which they are, or in how they are recognised",
    "chat_template": "the chat templates differ: the teacher was trained on another form of conversation",
}
_ONLY_ONE_TO_ONE = frozenset({"merges", "pre_tokenizer", "normalizer", "added_tokens"})
"""Between other vocabularies these differ anyway, and nothing relies on them."""


def warnings_of(
    relation: VocabularyRelation,
    differences: Sequence[str],
    teacher_of_student_U: IdMap,
    student: TokenTable,
    teacher: Vocabulary,
    *,
    lossy_steps: Sequence[str],
) -> tuple[str, ...]:
    """All warnings of a pairing."""
    warnings = [_DIFFERENCES[name] for name in differences if relation.is_one_to_one or name not in _ONLY_ONE_TO_ONE]
    if lossy_steps:
        steps = ", ".join(dict.fromkeys(lossy_steps))
        warnings.append(
            f"the student's tokenizer normalises text ({steps}): tokens are compared without that, and text that is "
            "not in that form reaches the student as other bytes than the teacher"
        )
    warnings.extend(_byte_warnings(student))
    if not relation.is_one_to_one:
        warnings.extend(_one_sided(teacher_of_student_U, student, teacher))
    return tuple(warnings)


def _byte_warnings(student: TokenTable) -> Iterable[str]:
    single = np.flatnonzero((np.diff(student.offsets_V1) == 1) & (student.kinds_V == TokenKind.TEXT))
    missing = 256 - len({student.blob[student.offsets_V1[token_id]] for token_id in single})
    # Bytes that no UTF-8 holds (C0, C1, F5 to FF) are left out of some vocabularies, and no text needs them.
    if missing > 13:
        yield f"the student's tokenizer has no token for {missing} of the 256 bytes: it cannot write every text"


def _one_sided(teacher_of_student_U: IdMap, student: TokenTable, teacher: Vocabulary) -> Iterable[str]:
    is_token_U = student.kinds_V != TokenKind.ABSENT
    only_student = is_token_U & (teacher_of_student_U == NO_PLACE)
    yield from _only("student", "teacher", only_student, student)
    only_teacher = (teacher.table.kinds_V != TokenKind.ABSENT) & ~is_matched(teacher_of_student_U, student, teacher)
    yield from _only("teacher", "student", only_teacher, teacher.table)
    share = 1 - only_student.sum() / max(1, is_token_U.sum())
    if share < _ENOUGH:
        yield f"only {share:.0%} of the student's vocabulary has a counterpart of the same bytes in the teacher's"


def _only(owner: str, other: str, is_only: npt.NDArray[np.bool_], table: TokenTable) -> Iterable[str]:
    """Of text: special tokens may still be paired, and have warnings of their own."""
    ids = np.flatnonzero(is_only & (table.kinds_V == TokenKind.TEXT)).tolist()
    if ids:
        named = ", ".join(repr(table.bytes_of(token_id).decode(errors="replace")) for token_id in ids[:_NAMED_TOKENS])
        more = ", ..." if len(ids) > _NAMED_TOKENS else ""
        yield f"{len(ids):,} text tokens of the {owner} are not tokens of the {other}: {named}{more}"
