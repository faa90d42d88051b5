"""The teacher's own segmentation of a response's bytes, laid beside the student's. Pure numpy.

A position is scored where both sides have a boundary at the same byte, or differ only in which token a single space
belongs to. All offsets are those of `StudentText`.
"""

# T = tokens of a response (the student's), S = tokens of text that the teacher writes for it, M = S and special tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import PositionStatus, StatusArray, TokenArray

from preceptor_server.alignment.reading import Conversion, Reading, convert
from preceptor_server.alignment.segmenter import Segmentation
from preceptor_server.alignment.student_text import StudentText
from preceptor_server.alignment.types import IdMap, TokenKind

_SPACE = ord(" ")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherText:
    """What the teacher writes for the student's text: token s covers the bytes [starts_S, ends_S)."""

    ids_S: TokenArray
    starts_S: npt.NDArray[np.int64]
    ends_S: npt.NDArray[np.int64]
    is_known_S: npt.NDArray[np.bool_]
    """Whether the token stands for just these bytes; one that does not is read, and scores nothing."""


def join_pieces(text: StudentText, segmentations: Sequence[Segmentation]) -> TeacherText:
    """The segmentations of the pieces, in the offsets of the whole text."""
    if not segmentations:
        nothing = np.zeros(0, np.int64)
        return TeacherText(ids_S=nothing, starts_S=nothing, ends_S=nothing, is_known_S=nothing.astype(np.bool_))
    pieces = list(zip(segmentations, text.piece_starts, strict=True))
    return TeacherText(
        ids_S=np.concatenate([piece.ids_M for piece, _ in pieces]),
        starts_S=np.concatenate([piece.starts_M + start for piece, start in pieces]),
        ends_S=np.concatenate([piece.ends_M + start for piece, start in pieces]),
        is_known_S=np.concatenate([piece.is_known_M for piece, _ in pieces]),
    )


def is_written_alike(text: StudentText, teacher: TeacherText, *, mapped_ids_T: IdMap) -> npt.NDArray[np.bool_]:
    """Whether the teacher would write each token of text, [T]. `mapped_ids_T` are the student's in its vocabulary.
    A token without text is nothing that a teacher could cut otherwise."""
    if not len(teacher.ids_S):
        return ~text.is_text_T
    rows_T = np.minimum(np.searchsorted(teacher.starts_S, text.starts_T), len(teacher.ids_S) - 1)
    is_alike_T: npt.NDArray[np.bool_] = teacher.starts_S[rows_T] == text.starts_T
    is_alike_T &= teacher.ids_S[rows_T] == mapped_ids_T
    return is_alike_T | ~text.is_text_T


def read_canonical(text: StudentText, teacher: TeacherText) -> Reading:
    """The reading in which the teacher sees its own segmentation, and special tokens in their counterparts."""
    match = _match_text(text, teacher)
    teacher_ids_M, places_S, counterparts = _with_specials(text, teacher)
    rows_T, path_ends_T = match.rows_T, match.path_ends_T
    is_text_ok_T = match.status_T == PositionStatus.OK
    # No special token stands inside a piece of text, so a path keeps its length.
    lengths_T = path_ends_T - rows_T
    rows_T[is_text_ok_T] = places_S[rows_T[is_text_ok_T]]
    for position, row in counterparts:
        rows_T[position], lengths_T[position] = row, 1
        match.status_T[position] = PositionStatus.OK
    match.status_T[~text.score_mask_T] = PositionStatus.EXCLUDED
    positions_N = np.flatnonzero(match.status_T == PositionStatus.OK)
    rows_N, sampled_ids_N = rows_T[positions_N], text.ids_T[positions_N]
    conversions_N = match.conversions_T[positions_N]
    # Where the next teacher token lands on the student's, the way beyond it says nothing more.
    lands_N = convert(text.alignment, teacher_ids_M[rows_N], conversions_N) == sampled_ids_N
    path_ends_N = rows_N + np.where(lands_N, 1, lengths_T[positions_N])
    return Reading(
        teacher_ids_M=teacher_ids_M,
        wanted_M=_on_a_path(rows_N, path_ends_N, num_tokens=len(teacher_ids_M)),
        status_T=match.status_T,
        rows_N=rows_N,
        path_ends_N=path_ends_N,
        sampled_ids_N=sampled_ids_N,
        conversions_N=conversions_N,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Match:
    """For each position of text that is OK, a row and the end of its path among the S; else a status why not."""

    rows_T: npt.NDArray[np.int64]
    path_ends_T: npt.NDArray[np.int64]
    conversions_T: npt.NDArray[np.uint8]
    status_T: StatusArray


def _match_text(text: StudentText, teacher: TeacherText) -> _Match:
    """Every position of text; those without get the status of having no counterpart."""
    # A token beyond the end ends every search.
    beyond = len(text.data) + 1
    starts_S1 = np.append(teacher.starts_S, beyond)
    ends_S1 = np.append(teacher.ends_S, beyond + 1)
    rows_T = np.searchsorted(starts_S1, text.starts_T)
    covering_T = np.maximum(np.searchsorted(starts_S1, text.starts_T, side="right") - 1, 0)
    is_known_S1 = np.append(teacher.is_known_S, False)
    is_covered_T = (starts_S1[covering_T] <= text.starts_T) & (text.starts_T < ends_S1[covering_T])
    is_covered_T &= is_known_S1[covering_T]
    is_ok_T = starts_S1[rows_T] == text.starts_T
    conversions_T = np.full(len(rows_T), Conversion.PLAIN, np.uint8)
    if len(text.alignment.pairing.with_space_V):
        for conversion, is_so_T, shifted_T in _shifted_by_a_space(text, starts_S1, ends_S1, covering_T):
            is_so_T &= is_covered_T & ~is_ok_T
            conversions_T[is_so_T] = conversion
            rows_T[is_so_T] = shifted_T[is_so_T]
            is_ok_T |= is_so_T
    path_ends_T = np.maximum(np.searchsorted(ends_S1, text.ends_T) + 1, rows_T + 1)
    path_ends_T = np.minimum(path_ends_T, len(ends_S1))
    status_T = np.where(is_ok_T, PositionStatus.OK, PositionStatus.MISALIGNED).astype(np.uint8)
    is_ok_T &= ~_has_gap(starts_S1, ends_S1, is_known_S1, rows_T, path_ends_T)
    status_T[~is_covered_T | (status_T == PositionStatus.OK) & ~is_ok_T] = PositionStatus.UNMAPPED
    status_T[~text.is_text_T] = PositionStatus.UNMAPPED
    kinds_T = text.alignment.pairing.student.kinds_V[text.ids_T]
    status_T[kinds_T == TokenKind.SPECIAL] = PositionStatus.SPECIAL
    return _Match(rows_T=rows_T, path_ends_T=path_ends_T, conversions_T=conversions_T, status_T=status_T)


def _shifted_by_a_space(
    text: StudentText,
    starts_S1: npt.NDArray[np.int64],
    ends_S1: npt.NDArray[np.int64],
    covering_T: npt.NDArray[np.int64],
) -> list[tuple[Conversion, npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
    """Where a boundary of the student lies inside a teacher token and one space away from the teacher's: the kind of
    shift, at which positions, and the rows that answer there."""
    is_space = np.append(text.data == _SPACE, False)
    following_T = np.minimum(covering_T + 1, len(starts_S1) - 1)
    boundary_T = ends_S1[covering_T]
    in_one_piece_T = (starts_S1[following_T] == boundary_T) & ~np.isin(boundary_T, text.piece_starts)
    # A token that ends with the space lies inside the teacher's: what it might have written instead is not known.
    goes_on_T = text.ends_T > boundary_T
    with_space_T = (boundary_T - text.starts_T == 1) & is_space[text.starts_T] & in_one_piece_T & goes_on_T
    token_start_T = np.minimum(starts_S1[covering_T], len(text.data))
    without_space_T = (text.starts_T - token_start_T == 1) & is_space[token_start_T]
    return [
        (Conversion.WITH_SPACE, with_space_T, following_T),
        (Conversion.WITHOUT_SPACE, without_space_T, covering_T),
    ]


def _has_gap(
    starts_S1: npt.NDArray[np.int64],
    ends_S1: npt.NDArray[np.int64],
    is_known_S1: npt.NDArray[np.bool_],
    rows_T: npt.NDArray[np.int64],
    path_ends_T: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Whether the way from a row to the end of its path leads over bytes that the teacher cannot write, or past the
    end of what it writes."""
    written_S2 = np.concatenate([[0], np.cumsum(np.where(is_known_S1, ends_S1 - starts_S1, 0))])
    spans_T = ends_S1[path_ends_T - 1] - starts_S1[np.minimum(rows_T, len(starts_S1) - 1)]
    has_gap_T: npt.NDArray[np.bool_] = path_ends_T >= len(ends_S1)
    has_gap_T |= spans_T != written_S2[path_ends_T] - written_S2[rows_T]
    return has_gap_T


def _with_specials(
    text: StudentText, teacher: TeacherText
) -> tuple[TokenArray, npt.NDArray[np.int64], list[tuple[int, int]]]:
    """The teacher's text with the counterparts of special tokens put in: all ids, where each token of text went, and
    (position, row) of each counterpart that is scored."""
    placed, unscored = _counterparts(text)
    before = np.searchsorted(teacher.starts_S, text.starts_T[[position for position, _ in placed]])
    ids_M = np.insert(teacher.ids_S, before, [teacher_id for _, teacher_id in placed])
    places_S = np.arange(len(teacher.ids_S)) + np.searchsorted(before, np.arange(len(teacher.ids_S)), side="right")
    rows = [(position, int(row) + index) for index, ((position, _), row) in enumerate(zip(placed, before, strict=True))]
    return ids_M, places_S, [(position, row) for position, row in rows if position not in unscored]


def _counterparts(text: StudentText) -> tuple[list[tuple[int, int]], set[int]]:
    """(position, teacher's id) where the student's token is no text and the teacher reads something; the positions
    among them whose text nobody knows."""
    alignment = text.alignment
    unknown_id, read_as = alignment.pairing.student.unknown_id, alignment.unknown_read_as
    placed, unscored = [], set()
    for position in np.flatnonzero(~text.is_text_T).tolist():
        token_id = int(text.ids_T[position])
        counterpart = alignment.special_to_teacher.get(token_id)
        if counterpart is None and token_id == unknown_id and read_as is not None:
            counterpart = read_as
            unscored.add(position)
        if counterpart is not None:
            placed.append((position, counterpart))
    return placed, unscored


def _on_a_path(
    rows_N: npt.NDArray[np.int64], path_ends_N: npt.NDArray[np.int64], *, num_tokens: int
) -> npt.NDArray[np.bool_]:
    changes = np.zeros(num_tokens + 1, np.int64)
    np.add.at(changes, rows_N, 1)
    np.add.at(changes, path_ends_N, -1)
    is_on_M: npt.NDArray[np.bool_] = np.cumsum(changes[:-1]) > 0
    return is_on_M
