"""Reads what students wrote for one teacher, by the policy that was asked for. Knows nothing of logprobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from preceptor.wire import PositionStatus, SegmentationPolicy

from preceptor_server.alignment.canonical import TeacherText, is_written_alike, join_pieces, read_canonical
from preceptor_server.alignment.one_to_one import first_occurrences, read_one_to_one
from preceptor_server.alignment.reading import Reading, cut_to_context
from preceptor_server.alignment.segmenter import Segmentation
from preceptor_server.alignment.student_text import StudentText
from preceptor_server.alignment.types import Alignment
from preceptor_server.types import ResponseToScore


class SegmentsText(Protocol):
    """What `Segmenter` does: writes bytes as tokens, in the middle of a text."""

    def segment(self, texts: Sequence[bytes]) -> list[Segmentation]: ...


class Reader:
    """Owns the teacher's segmenter."""

    def __init__(self, segmenter: SegmentsText) -> None:
        self._segmenter = segmenter

    def read(
        self,
        responses: Sequence[ResponseToScore],
        alignment: Alignment,
        *,
        policy: SegmentationPolicy,
        room: int,
        paper_token_ids: Sequence[int] = (),
    ) -> list[Reading]:
        """One reading per response, whose ids are the student's, all inside its vocabulary. `room` is how many teacher
        tokens fit its context."""
        match policy:
            case SegmentationPolicy.CANONICAL:
                readings = [read_canonical(text, teacher) for text, teacher in self._segment(responses, alignment)]
            case SegmentationPolicy.MASK:
                readings = [
                    _masked(response, text, teacher)
                    for response, (text, teacher) in zip(responses, self._segment(responses, alignment), strict=True)
                ]
            case SegmentationPolicy.AS_IS | SegmentationPolicy.PAPER:
                readings = [
                    read_one_to_one(response, alignment, masked_T=first_occurrences(response.ids_T, paper_token_ids))
                    for response in responses
                ]
        return [cut_to_context(reading, room=room) for reading in readings]

    def _segment(
        self, responses: Sequence[ResponseToScore], alignment: Alignment
    ) -> Iterator[tuple[StudentText, TeacherText]]:
        """All responses in one call of the tokenizer."""
        texts = [
            StudentText(ids_T=response.ids_T, score_mask_T=response.score_mask_T, alignment=alignment)
            for response in responses
        ]
        segmentations = iter(self._segmenter.segment([piece for text in texts for piece in text.pieces]))
        for text in texts:
            yield text, join_pieces(text, [next(segmentations) for _ in text.piece_starts])


def _masked(response: ResponseToScore, text: StudentText, teacher: TeacherText) -> Reading:
    mapped_ids_T = text.alignment.pairing.teacher_of_student_U[response.ids_T]
    return read_one_to_one(
        response,
        text.alignment,
        masked_T=~is_written_alike(text, teacher, mapped_ids_T=mapped_ids_T),
        status=PositionStatus.MISALIGNED,
    )
