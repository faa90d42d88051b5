"""Alignments made by hand, for tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from preceptor.wire import VocabularyRelation
from preceptor_server.alignment.specials import AS_CONFIGURED
from preceptor_server.alignment.types import END, NO_PLACE, Alignment, PairedTokens, Pairing, TokenKind, TokenTable

_Ids = npt.NDArray[np.integer]
_NONE = np.zeros(0, np.int32)


def table_of(tokens: list[bytes], *, specials: dict[int, str] | None = None) -> TokenTable:
    """A table of these tokens in order; those in `specials` are special, empty ones absent."""
    specials = specials or {}
    texts = [b"" if index in specials else token for index, token in enumerate(tokens)]
    kinds = [
        TokenKind.SPECIAL if index in specials else TokenKind.TEXT if token else TokenKind.ABSENT
        for index, token in enumerate(texts)
    ]
    return TokenTable(
        kinds_V=np.array(kinds, np.uint8),
        blob=b"".join(texts),
        offsets_V1=np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64),
        special_texts=specials,
    )


def alignment_of(
    *,
    relation: VocabularyRelation,
    projection_V: _Ids,
    num_student_ids: int = 0,
    student: TokenTable | None = None,
    teacher_of_student_U: _Ids | None = None,
    with_space_V: _Ids = _NONE,
    without_space_V: _Ids = _NONE,
    student_end_ids: tuple[int, ...] = (),
    end_class: tuple[int, ...] = (),
    special_to_teacher: dict[int, int] | None = None,
    configured: tuple[tuple[int, int], ...] = (),
) -> Alignment:
    """`end_class` are the teacher ids that become END; `configured` the pairs that were asked for, whose places
    `projection_V` holds already."""
    places = projection_V.astype(np.int32)
    with_ends = places.copy()
    with_ends[list(end_class)] = END
    table = student or table_of([b"x"] * num_student_ids)
    back = np.full(table.size, NO_PLACE, np.int32) if teacher_of_student_U is None else teacher_of_student_U
    return Alignment(
        tokenizer_id="by hand",
        pairing=Pairing(
            student=table,
            relation=relation,
            differences=(),
            teacher_of_student_U=back.astype(np.int32),
            projection_V=np.where(places == END, NO_PLACE, places).astype(np.int32),
            with_space_V=with_space_V.astype(np.int32),
            without_space_V=without_space_V.astype(np.int32),
            warnings=(),
        ),
        projection_V=with_ends,
        special_to_teacher=special_to_teacher or {},
        student_end_ids=student_end_ids,
        teacher_end_ids=end_class,
        paired=tuple(PairedTokens(student_id=a, teacher_id=b, reason=AS_CONFIGURED) for a, b in configured),
        masked_ids=(),
        dropped_ids=(),
        unknown_read_as=None,
        mapped_share=1.0,
        projected_share=1.0,
        warnings=(),
    )
