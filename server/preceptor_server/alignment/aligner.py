"""One teacher's side of alignment: its vocabulary, its segmenter, the students that registered. Built at start."""

from __future__ import annotations

from dataclasses import dataclass

from preceptor_server.alignment.pairing import read_teacher
from preceptor_server.alignment.reader import Reader
from preceptor_server.alignment.registry import AlignmentRegistry
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.types import TeacherVocabulary
from preceptor_server.config import LimitsConfig
from preceptor_server.types import EngineInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligner:
    """What turns students' ids into the teacher's, and back."""

    vocabulary: TeacherVocabulary
    segmenter: Segmenter
    reader: Reader
    registry: AlignmentRegistry


def build_aligner(tokenizer: TeacherTokenizer, info: EngineInfo, limits: LimitsConfig) -> Aligner:
    """Raises InvalidTokenizerError where it cannot be known which bytes the teacher's tokens stand for."""
    vocabulary = read_teacher(tokenizer.json, tokenizer.chat_template, vocabulary_size=info.vocabulary_size)
    segmenter = Segmenter(tokenizer.json, vocabulary.table)
    return Aligner(
        vocabulary=vocabulary,
        segmenter=segmenter,
        reader=Reader(segmenter),
        registry=AlignmentRegistry(
            vocabulary,
            own_tokenizer_id=tokenizer.tokenizer_id,
            teacher_end_ids=info.end_token_ids,
            limits=limits,
        ),
    )
