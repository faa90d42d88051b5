"""Describes the hosted teachers and the server's limits as a GetInfoResponse."""

from __future__ import annotations

from collections.abc import Sequence

from preceptor import __version__
from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.hosted import HostedTeacher


def encode_info(teachers: Sequence[HostedTeacher], *, include_tokenizer: bool) -> pb.GetInfoResponse:
    """What a caller may use here. The limits are those of the first teacher for readers of the older field, and each
    teacher's own beside it."""
    return pb.GetInfoResponse(
        server_version=__version__,
        teachers=[_encode_teacher(teacher, include_tokenizer=include_tokenizer) for teacher in teachers],
        limits=_encode_limits(teachers[0]) if teachers else None,
    )


def _encode_limits(teacher: HostedTeacher) -> pb.Limits:
    limits = teacher.limits
    return pb.Limits(
        max_top_k=teacher.max_top_k,
        max_responses=limits.max_responses,
        max_group_tokens=limits.max_group_tokens,
        max_message_bytes=limits.max_message_bytes,
        max_queue_tokens=teacher.max_queue_tokens,
        max_tokenizer_bytes=limits.max_tokenizer_bytes,
    )


def _encode_teacher(teacher: HostedTeacher, *, include_tokenizer: bool) -> pb.TeacherInfo:
    info, tokenizer = teacher.info, teacher.tokenizer
    special_tokens = tokenizer.special_tokens if tokenizer else ()
    return pb.TeacherInfo(
        name=teacher.name,
        revision=info.revision,
        engine=info.engine,
        model=info.model,
        dtype=info.dtype,
        device=info.device,
        vocabulary_size=info.vocabulary_size,
        max_model_len=info.max_model_len,
        tokenizer_id=teacher.tokenizer_id,
        vocabulary_id=tokenizer.vocabulary_id if tokenizer else "",
        special_tokens=[pb.SpecialToken(id=token.id, text=token.text) for token in special_tokens],
        end_token_ids=info.end_token_ids,
        has_chat_template=tokenizer is not None and tokenizer.has_chat_template,
        capabilities=pb.Capabilities(
            temperature=info.applies_temperature,
            batch_invariant=info.is_batch_invariant_on_request,
            candidates=info.scores_candidates,
            other_tokenizers=teacher.aligner is not None,
            entropies=info.computes_entropies,
            weight_updates=teacher.takes_weights,
            chat_arguments=tokenizer is not None and tokenizer.takes_chat_arguments,
        ),
        adapters=[pb.AdapterInfo(name=name, revision=info.revision_of(name)) for name in sorted(info.adapters)],
        tokenizer_json=tokenizer.json.encode() if tokenizer and include_tokenizer else b"",
        limits=_encode_limits(teacher),
    )
