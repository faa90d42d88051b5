"""The bytes between the server and the process that reads a student's tokenizer. Knows neither processes nor pairing.

Arrays travel as an .npz without pickle, the rest as JSON inside it, so that reading runs no code of the sender's.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from preceptor.wire import VocabularyRelation

from preceptor_server.alignment.types import Pairing, TeacherVocabulary, TokenTable
from preceptor_server.errors import InvalidTokenizerError

_PAIRING = b"P"
_REFUSAL = b"R"
_MAX_MESSAGE_CHARACTERS = 2000
_Array = npt.NDArray[Any]  # Any: each array's dtype is the field's that it belongs to
_Json = dict[str, Any]  # Any: a JSON value is whatever it is


class ExchangeError(Exception):
    """Bytes that neither side writes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairingJob:
    """What the process has to pair: a student's tokenizer, unread so far, with the teacher's vocabulary."""

    tokenizer_id: str
    """The fingerprint that the student claims."""
    tokenizer_json: bytes
    chat_template: str | None
    vocabulary_size: int
    """The student's number of logits; 0 = as many as its tokenizer has tokens."""
    teacher: TeacherVocabulary
    cpu_seconds: int
    """How much processor time may go into it."""


def pack_job(job: PairingJob) -> bytes:
    header: _Json = {
        "tokenizer_id": job.tokenizer_id,
        "chat_template": job.chat_template,
        "vocabulary_size": job.vocabulary_size,
        "cpu_seconds": job.cpu_seconds,
        "parts": dict(job.teacher.parts),
        **_roles_of(job.teacher.table),
    }
    return _pack(header, {"tokenizer_json": _as_array(job.tokenizer_json), **_arrays_of(job.teacher.table)})


def unpack_job(data: bytes) -> PairingJob:
    """Raises ExchangeError where `data` is no job."""
    header, arrays = _unpack(data)
    try:
        teacher = TeacherVocabulary(table=_table_from(header, arrays), parts=header["parts"])
        return PairingJob(
            tokenizer_id=header["tokenizer_id"],
            tokenizer_json=arrays["tokenizer_json"].tobytes(),
            chat_template=header["chat_template"],
            vocabulary_size=header["vocabulary_size"],
            teacher=teacher,
            cpu_seconds=header["cpu_seconds"],
        )
    except (KeyError, ValueError) as error:
        raise ExchangeError(f"not a job: {error!r}") from error


def pack_pairing(pairing: Pairing) -> bytes:
    header: _Json = {
        "relation": int(pairing.relation),
        "differences": pairing.differences,
        "warnings": pairing.warnings,
        **_roles_of(pairing.student),
    }
    maps = {
        "teacher_of_student_U": pairing.teacher_of_student_U,
        "projection_V": pairing.projection_V,
        "with_space_V": pairing.with_space_V,
        "without_space_V": pairing.without_space_V,
    }
    return _PAIRING + _pack(header, {**maps, **_arrays_of(pairing.student)})


def unpack_pairing(data: bytes) -> Pairing:
    """Raises the refusal where that was packed, ExchangeError where `data` is neither."""
    kind, body = data[:1], data[1:]
    if kind == _REFUSAL:
        raise unpack_refusal(data)
    if kind != _PAIRING:
        raise ExchangeError("neither a pairing nor a refusal")
    header, arrays = _unpack(body)
    try:
        return Pairing(
            student=_table_from(header, arrays),
            relation=VocabularyRelation(header["relation"]),
            differences=tuple(header["differences"]),
            teacher_of_student_U=arrays["teacher_of_student_U"],
            projection_V=arrays["projection_V"],
            with_space_V=arrays["with_space_V"],
            without_space_V=arrays["without_space_V"],
            warnings=tuple(header["warnings"]),
        )
    except (KeyError, ValueError) as error:
        raise ExchangeError(f"not a pairing: {error!r}") from error


def pack_refusal(refusal: InvalidTokenizerError) -> bytes:
    message = str(refusal).removeprefix(f"{refusal.field}: ")[:_MAX_MESSAGE_CHARACTERS]
    return _REFUSAL + json.dumps({"field": refusal.field, "reason": refusal.reason, "message": message}).encode()


def unpack_refusal(data: bytes) -> InvalidTokenizerError:
    """Raises ExchangeError where `data` is no refusal."""
    try:
        refusal = json.loads(data.removeprefix(_REFUSAL))
        return InvalidTokenizerError(refusal["message"], reason=refusal["reason"], field=refusal["field"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExchangeError(f"not a refusal: {error!r}") from error


def _pack(header: _Json, arrays: Mapping[str, _Array]) -> bytes:
    buffer = io.BytesIO()
    columns: dict[str, Any] = {"header": _as_array(json.dumps(header).encode()), **arrays}
    np.savez(buffer, **columns)
    return buffer.getvalue()


def _unpack(data: bytes) -> tuple[_Json, dict[str, _Array]]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as columns:
            arrays = {name: columns[name] for name in columns.files}
        return json.loads(arrays.pop("header").tobytes()), arrays
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ExchangeError(f"not an archive of arrays: {error!r}") from error


def _arrays_of(table: TokenTable) -> dict[str, _Array]:
    return {"kinds_V": table.kinds_V, "blob": _as_array(table.blob), "offsets_V1": table.offsets_V1}


def _table_from(header: _Json, arrays: Mapping[str, _Array]) -> TokenTable:
    return TokenTable(
        kinds_V=arrays["kinds_V"],
        blob=arrays["blob"].tobytes(),
        offsets_V1=arrays["offsets_V1"],
        special_texts={int(token_id): text for token_id, text in header["special_texts"].items()},
        unknown_id=header["unknown_id"],
    )


def _roles_of(table: TokenTable) -> _Json:
    texts = {str(token_id): text for token_id, text in table.special_texts.items()}
    return {"special_texts": texts, "unknown_id": table.unknown_id}


def _as_array(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)
