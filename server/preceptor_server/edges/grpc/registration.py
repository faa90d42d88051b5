"""RegisterTokenizer between protobuf and the registry: decodes the request, encodes the report. Judges nothing."""

from __future__ import annotations

from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.types import Alignment, TeacherVocabulary, TokenKind, TokenTable
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.segmentation import find_alignment

MAX_END_TOKENS = 64
"""All of them are asked for at every position."""


def decode_registration(request: pb.RegisterTokenizerRequest) -> Registration:
    """Raises InvalidRequestError where a field is missing or said twice."""
    if not request.tokenizer_id:
        raise InvalidRequestError("tokenizer_id", "is missing: preceptor.fingerprint.tokenizer_id computes it")
    for field in ("end_token_ids", "teacher_end_token_ids"):
        if len(getattr(request, field)) > MAX_END_TOKENS:
            raise InvalidRequestError(
                field, f"holds {len(getattr(request, field))} ids, more than {MAX_END_TOKENS}: name those in use"
            )
    pairs: dict[str, str] = {}
    for index, pair in enumerate(request.special_pairs):
        if pair.student in pairs:
            raise InvalidRequestError(f"special_pairs[{index}].student", f"{pair.student[:64]!r} is paired twice")
        pairs[pair.student] = pair.teacher
    return Registration(
        tokenizer_id=request.tokenizer_id,
        tokenizer_json=request.tokenizer_json,
        chat_template=request.chat_template,
        end_token_ids=tuple(request.end_token_ids),
        teacher_end_token_ids=tuple(request.teacher_end_token_ids),
        special_pairs=pairs,
        vocabulary_size=request.vocabulary_size,
    )


def check_registers_nothing(registration: Registration, teacher: HostedTeacher) -> None:
    """For a teacher that aligns nothing: raises NotYetImplementedError unless the tokenizer is its own, as it is."""
    find_alignment(registration.tokenizer_id, teacher)
    for field in ("end_token_ids", "teacher_end_token_ids", "special_pairs"):
        if getattr(registration, field):
            raise NotYetImplementedError(field, "this teacher has no tokenizer to align with: leave it out")


def encode_report(alignment: Alignment, teacher: TeacherVocabulary) -> pb.AlignmentReport:
    """The alignment in words and figures."""
    pairing = alignment.pairing
    student_table, teacher_table = pairing.student, teacher.table
    return pb.AlignmentReport(
        relation=pb.VocabularyRelation.ValueType(pairing.relation),
        mapped_share=alignment.mapped_share,
        warnings=alignment.warnings,
        paired=[
            pb.PairedTokens(
                student=_named(student_table, pair.student_id),
                teacher=_named(teacher_table, pair.teacher_id),
                reason=pair.reason,
            )
            for pair in alignment.paired
        ],
        masked=[_named(student_table, token_id) for token_id in alignment.masked_ids],
        dropped=[_named(teacher_table, token_id) for token_id in alignment.dropped_ids],
        student_end_tokens=[_named(student_table, token_id) for token_id in alignment.student_end_ids],
        teacher_end_tokens=[_named(teacher_table, token_id) for token_id in alignment.teacher_end_ids],
        projected_share=alignment.projected_share,
        differences=pairing.differences,
        is_one_to_one=pairing.relation.is_one_to_one,
    )


def encode_own_report() -> pb.AlignmentReport:
    """Of the teacher's own tokenizer, where it aligns nothing."""
    return pb.AlignmentReport(
        relation=pb.VOCABULARY_RELATION_IDENTICAL, mapped_share=1.0, projected_share=1.0, is_one_to_one=True
    )


def _named(table: TokenTable, token_id: int) -> pb.SpecialToken:
    """A token by its text; bytes that are no text by their replacement."""
    if table.kinds_V[token_id] == TokenKind.SPECIAL:
        return pb.SpecialToken(id=token_id, text=table.special_texts[token_id])
    return pb.SpecialToken(id=token_id, text=table.bytes_of(token_id).decode(errors="replace"))
