"""What /v1/align answers: how the teacher reads a text, token by token, and why a position would not be scored."""

# T = tokens of the text (the student's), M = tokens that the teacher reads for it

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from preceptor.wire import PositionStatus, SegmentationPolicy

from preceptor_server.alignment.canonical import join_pieces
from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.student_text import StudentText
from preceptor_server.alignment.types import Alignment, TokenKind, TokenTable
from preceptor_server.edges.grpc.registration import encode_report
from preceptor_server.edges.http.plain import to_plain
from preceptor_server.edges.http.texts import text_of
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import PreparedCall

if TYPE_CHECKING:
    from preceptor_server.alignment.aligner import Aligner  # imports transformers

Plain = dict[str, Any]  # Any: whatever JSON holds
Places = npt.NDArray[np.int64]

REASONS: dict[int, str] = {
    PositionStatus.UNMAPPED: "the teacher's vocabulary has nothing that stands for it",
    PositionStatus.BEYOND_CONTEXT: "it lies beyond the teacher's context",
    PositionStatus.EXCLUDED: "the score mask excludes it",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cut:
    """A text as its tokens cover bytes; one without text covers none."""

    starts: Places
    ends: Places


def show_alignment(call: PreparedCall, alignment: Alignment | None, teacher: HostedTeacher) -> Plain:
    """Of the call's only response. `alignment` is the tokenizer's, though the call may need none. Takes as long as the
    text is; asks no model."""
    if alignment is None or teacher.aligner is None:
        return _unaligned(call, teacher)
    return _Shown(call, alignment, teacher, teacher.aligner).answer()


class _Shown:
    """One text, and both sides' cuts of it."""

    def __init__(self, call: PreparedCall, alignment: Alignment, teacher: HostedTeacher, aligner: Aligner) -> None:
        [response] = call.responses
        self._call, self._alignment, self._aligner = call, alignment, aligner
        self._ids_T = response.ids_T
        room = teacher.info.max_model_len - len(call.prompt_ids_P)
        [self._reading] = aligner.reader.read(
            call.responses, alignment, policy=call.segmentation, paper_token_ids=call.call.paper_token_ids, room=room
        )
        text = StudentText(ids_T=response.ids_T, score_mask_T=response.score_mask_T, alignment=alignment)
        own = join_pieces(text, aligner.segmenter.segment(text.pieces))
        self._student_cut = _Cut(starts=text.starts_T, ends=text.ends_T)
        self._own_ids, self._own_cut = own.ids_S, _Cut(starts=own.starts_S, ends=own.ends_S)

    def answer(self) -> Plain:
        table, teacher_table = self._alignment.pairing.student, self._aligner.vocabulary.table
        is_scored_M = np.zeros(len(self._reading.teacher_ids_M), np.bool_)
        is_scored_M[self._reading.rows_N] = True
        return {
            "tokenizer_id": self._call.tokenizer_id,
            "segmentation": self._call.segmentation.name.lower(),
            "tokens": [
                _token(int(token_id), table)
                | {
                    "status": PositionStatus(self._reading.status_T[position]).name.lower(),
                    "reason": self._reason(position),
                    "teacher_tokens": indices,
                }
                for position, (token_id, indices) in enumerate(zip(self._ids_T, self._teacher_tokens(), strict=True))
            ],
            "teacher_tokens": [
                {"id": int(token_id), "text": text_of(teacher_table, int(token_id)), "is_scored": bool(is_scored)}
                for token_id, is_scored in zip(self._reading.teacher_ids_M, is_scored_M, strict=True)
            ],
            "report": to_plain(encode_report(self._alignment, self._aligner.vocabulary)),
        }

    def _teacher_tokens(self) -> list[list[int]]:
        """For each token the indices of those that the teacher reads in its place: of a scored one, its path; of any
        other, what shares bytes with it."""
        if self._call.segmentation is not SegmentationPolicy.CANONICAL:
            return self._counterparts()
        read = _cut_of(self._reading, self._aligner.vocabulary.table)
        indices = [_overlapping(read, start, end) for start, end in _pairs(self._student_cut)]
        reading = self._reading
        for position, row, end in zip(reading.positions_N, reading.rows_N, reading.path_ends_N, strict=True):
            indices[position] = list(range(int(row), int(end)))
        return indices

    def _counterparts(self) -> list[list[int]]:
        """The teacher reads the student's own tokens, without those that it lacks and those beyond its context."""
        indices: list[list[int]] = []
        following = 0
        for status, token_id in zip(self._reading.status_T, self._ids_T, strict=True):
            has_one = self._alignment.pairing.teacher_of_student_U[token_id] >= 0
            is_read = has_one and status != PositionStatus.BEYOND_CONTEXT
            indices.append([following] if is_read else [])
            following += int(is_read)
        return indices

    def _reason(self, position: int) -> str | None:
        status = PositionStatus(self._reading.status_T[position])
        if status is PositionStatus.MISALIGNED:
            start, end = self._student_cut.starts[position], self._student_cut.ends[position]
            table = self._aligner.vocabulary.table
            own = [text_of(table, int(self._own_ids[i])) for i in _overlapping(self._own_cut, int(start), int(end))]
            return f"the teacher would write {' + '.join(map(repr, own)) or 'nothing'} there"
        if status is PositionStatus.SPECIAL:
            if int(self._ids_T[position]) in self._call.call.paper_token_ids:
                return "it is the first of its kind, and paper_token_ids names it"
            return "it is a special token without a counterpart"
        return REASONS.get(status)


def _unaligned(call: PreparedCall, teacher: HostedTeacher) -> Plain:
    """Of a teacher that aligns nothing: the tokens are its own."""
    [response] = call.responses
    ids = response.ids_T.tolist()
    texts = teacher.tokenizer.texts_of(ids) if teacher.tokenizer else [""] * len(ids)
    return {
        "tokenizer_id": call.tokenizer_id,
        "segmentation": call.segmentation.name.lower(),
        "tokens": [
            {"id": one, "text": text, "bytes": "", "status": "ok", "reason": None, "teacher_tokens": [index]}
            for index, (one, text) in enumerate(zip(ids, texts, strict=True))
        ],
        "teacher_tokens": [{"id": one, "text": text, "is_scored": True} for one, text in zip(ids, texts, strict=True)],
        "report": None,
    }


def _token(token_id: int, table: TokenTable) -> Plain:
    is_text = table.kinds_V[token_id] == TokenKind.TEXT
    return {
        "id": token_id,
        "text": text_of(table, token_id),
        "bytes": table.bytes_of(token_id).hex() if is_text else "",
    }


def _cut_of(reading: Reading, table: TokenTable) -> _Cut:
    """Where the tokens of the teacher's own segmentation lie; it writes all bytes, or the text has gaps, and then what
    stands behind one is shown too early."""
    lengths_M = table.offsets_V1[reading.teacher_ids_M + 1] - table.offsets_V1[reading.teacher_ids_M]
    ends_M = np.cumsum(lengths_M)
    return _Cut(starts=ends_M - lengths_M, ends=ends_M)


def _overlapping(cut: _Cut, start: int, end: int) -> list[int]:
    indices: list[int] = np.flatnonzero((cut.starts < end) & (cut.ends > start)).tolist()
    return indices


def _pairs(cut: _Cut) -> list[tuple[int, int]]:
    return list(zip(cut.starts.tolist(), cut.ends.tolist(), strict=True))
