"""Encodes registrations of tokenizers, and decodes what a server says of them and of itself. Knows no scores."""

from __future__ import annotations

import math
from collections.abc import Iterable

from preceptor.v1 import teacher_pb2
from preceptor.wire import VocabularyRelation

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.request import RegistrationRequest
from preceptor_client.types import (
    AlignmentReport,
    Capabilities,
    Limits,
    PairedTokens,
    Registration,
    ServerInfo,
    SpecialToken,
    TeacherInfo,
    WeightUpdate,
)


def encode_registration(
    request: RegistrationRequest, *, tokenizer_id: str, with_json: bool
) -> teacher_pb2.RegisterTokenizerRequest:
    """The request to send; without the JSON it asks whether the server knows the tokenizer already."""
    return teacher_pb2.RegisterTokenizerRequest(
        teacher=request.teacher,
        tokenizer_id=tokenizer_id,
        tokenizer_json=request.tokenizer_json.encode() if with_json else b"",
        chat_template=request.chat_template or "",
        end_token_ids=request.end_token_ids,
        teacher_end_token_ids=request.teacher_end_token_ids,
        special_pairs=[
            teacher_pb2.SpecialPair(student=student, teacher=teacher) for student, teacher in request.special_pairs
        ],
        vocabulary_size=request.vocabulary_size,
    )


def decode_registration(answer: teacher_pb2.RegisterTokenizerResponse) -> Registration:
    """What the server makes of a tokenizer. Raises CorruptAnswerError where the answer says too little."""
    if not answer.tokenizer_id:
        raise CorruptAnswerError("tokenizer_id is empty: there is nothing to score with")
    if not answer.HasField("report"):
        raise CorruptAnswerError("report is absent, though the server says that it has the tokenizer")
    return Registration(tokenizer_id=answer.tokenizer_id, report=_decode_report(answer.report))


def decode_info(answer: teacher_pb2.GetInfoResponse) -> ServerInfo:
    """What a server hosts, and its limits."""
    return ServerInfo(
        server_version=answer.server_version,
        teachers=tuple(_decode_teacher(teacher) for teacher in answer.teachers),
        limits=Limits(
            max_top_k=answer.limits.max_top_k,
            max_responses=answer.limits.max_responses,
            max_group_tokens=answer.limits.max_group_tokens,
            max_message_bytes=answer.limits.max_message_bytes,
            max_queue_tokens=answer.limits.max_queue_tokens,
            max_tokenizer_bytes=answer.limits.max_tokenizer_bytes,
        ),
    )


def decode_weight_update(answer: teacher_pb2.UpdateWeightsResponse, *, unload: bool) -> WeightUpdate:
    """What serves after an update. Raises CorruptAnswerError where the answer does not say it."""
    if bool(answer.revision) == unload:
        wrong = f"is {answer.revision!r}, though the adapter was to be taken away" if unload else "is empty"
        raise CorruptAnswerError(f"revision {wrong}: it cannot be known what serves")
    return WeightUpdate(
        revision=answer.revision, previous_revision=answer.previous_revision, paused_ms=answer.paused_ms
    )


def _decode_report(report: teacher_pb2.AlignmentReport) -> AlignmentReport:
    if int(report.relation) not in set(VocabularyRelation):
        raise CorruptAnswerError(f"report.relation is {report.relation}: the vocabularies were not compared")
    return AlignmentReport(
        relation=VocabularyRelation(report.relation),
        is_one_to_one=report.is_one_to_one,
        mapped_share=_share(report.mapped_share, field="report.mapped_share"),
        projected_share=_share(report.projected_share, field="report.projected_share"),
        differences=tuple(report.differences),
        paired=tuple(
            PairedTokens(student=_token(pair.student), teacher=_token(pair.teacher), reason=pair.reason)
            for pair in report.paired
        ),
        masked=_tokens(report.masked),
        dropped=_tokens(report.dropped),
        student_end_tokens=_tokens(report.student_end_tokens),
        teacher_end_tokens=_tokens(report.teacher_end_tokens),
        warnings=tuple(report.warnings),
    )


def _tokens(tokens: Iterable[teacher_pb2.SpecialToken]) -> tuple[SpecialToken, ...]:
    return tuple(_token(token) for token in tokens)


def _token(token: teacher_pb2.SpecialToken) -> SpecialToken:
    return SpecialToken(id=token.id, text=token.text)


def _share(value: float, *, field: str) -> float:
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise CorruptAnswerError(f"{field} is {value}, a share is in [0, 1]")
    return value


def _decode_teacher(teacher: teacher_pb2.TeacherInfo) -> TeacherInfo:
    can = teacher.capabilities
    return TeacherInfo(
        name=teacher.name,
        revision=teacher.revision,
        engine=teacher.engine,
        model=teacher.model,
        dtype=teacher.dtype,
        device=teacher.device,
        vocabulary_size=teacher.vocabulary_size,
        max_model_len=teacher.max_model_len,
        tokenizer_id=teacher.tokenizer_id,
        vocabulary_id=teacher.vocabulary_id,
        special_tokens=_tokens(teacher.special_tokens),
        end_token_ids=tuple(teacher.end_token_ids),
        has_chat_template=teacher.has_chat_template,
        capabilities=Capabilities(
            temperature=can.temperature,
            batch_invariant=can.batch_invariant,
            candidates=can.candidates,
            other_tokenizers=can.other_tokenizers,
            entropies=can.entropies,
            weight_updates=can.weight_updates,
            chat_arguments=can.chat_arguments,
        ),
        adapters={adapter.name: adapter.revision for adapter in teacher.adapters},
        tokenizer_json=_decode_text(teacher.tokenizer_json, field=f"teachers[{teacher.name}].tokenizer_json"),
    )


def _decode_text(data: bytes, *, field: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptAnswerError(f"{field} is not UTF-8: {error}") from error
