"""What ids stand for, as text to be shown. A piece of a character is shown by its bytes, such as <0xF0>."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from preceptor_server.alignment.types import TokenKind, TokenTable
from preceptor_server.errors import UnknownTokenizerError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.segmentation import find_alignment

if TYPE_CHECKING:
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers

Ids = npt.NDArray[np.int64]


class Texts:
    """The texts of one vocabulary. Of one that this server does not know (any more), there are none."""

    def __init__(self, table: TokenTable | None, tokenizer: TeacherTokenizer | None = None) -> None:
        """`tokenizer` is asked where there is no table."""
        self._table = table
        self._tokenizer = tokenizer

    def of(self, *columns: Ids) -> dict[str, str]:
        """By id, for every id in the columns; keys are text because JSON's are."""
        ids = np.unique(np.concatenate([column.ravel() for column in columns])).tolist() if columns else []
        if self._table is not None:
            return {str(token_id): text_of(self._table, token_id) for token_id in ids}
        if self._tokenizer is not None:
            return dict(zip(map(str, ids), self._tokenizer.texts_of(ids), strict=True))
        return {}


def text_of(table: TokenTable, token_id: int) -> str:
    """An id's text; empty where it is padding."""
    if token_id >= table.size:
        return ""
    if table.kinds_V[token_id] == TokenKind.SPECIAL:
        return table.special_texts[token_id]
    return shown(table.bytes_of(token_id))


def joined_text(table: TokenTable, ids: Sequence[int]) -> str:
    """The text of ids that follow each other: characters that they share are whole."""
    special = table.special_texts
    return shown(b"".join(special[one].encode() if one in special else table.bytes_of(one) for one in ids))


def shown(data: bytes) -> str:
    """Bytes as text."""
    text = data.decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    return "".join(f"<0x{ord(one) - 0xDC00:02X}>" if 0xDC80 <= ord(one) <= 0xDCFF else one for one in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabularies:
    """Both sides of an answer."""

    student: Texts
    teacher: Texts


def vocabularies_of(tokenizer_id: str, teacher: HostedTeacher | None) -> Vocabularies:
    """Of the tokenizer that a request names, and of the teacher's own; none of a teacher that is gone. For the event
    loop: it asks the registry."""
    if teacher is None:
        return Vocabularies(student=Texts(None), teacher=Texts(None))
    if teacher.aligner is None:
        own = Texts(None, teacher.tokenizer)
        return Vocabularies(student=own, teacher=own)
    own = Texts(teacher.aligner.vocabulary.table)
    try:
        alignment = find_alignment(tokenizer_id, teacher)
    except UnknownTokenizerError:
        return Vocabularies(student=Texts(None), teacher=own)
    return Vocabularies(student=Texts(alignment.pairing.student if alignment else None), teacher=own)
