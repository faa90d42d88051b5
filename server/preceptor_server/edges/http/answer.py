"""A ScoredCall as the answer of /v1/topk: JSON, lines of JSON, or msgpack. Written piece by piece, in a thread.

A float is written so that whoever reads it as one and rounds it to 32 bits has the same bits. Minus infinity is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import orjson
from preceptor.wire import PositionStatus

from preceptor_server.calls import ScoreCall, ScoredCall
from preceptor_server.edges.grpc.encoding import encode_score_response
from preceptor_server.edges.http.columns import Column, ResponseView, view_of
from preceptor_server.edges.http.next_token import without_placeholder
from preceptor_server.edges.http.texts import Ids, Vocabularies
from preceptor_server.serving import Notes

ENTRIES_PER_PIECE = 16_384
"""Numbers that are written at once: a millisecond's work, during which nothing else runs."""

Plain = dict[str, Any]  # Any: whatever JSON holds
_STATUS_NAMES = {status.value: status.name.lower() for status in PositionStatus}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is answered, before it is written."""

    head: Plain
    """Everything but the responses."""
    views: Sequence[ResponseView]


def build_answer(call: ScoreCall, scored: ScoredCall, notes: Notes, named: Vocabularies) -> Answer:
    """Ids have the texts of `named`. Takes as long as there are tokens to be named."""
    if notes.is_next:
        scored = without_placeholder(call, scored)
    views = view_of(call, scored, notes)
    teacher_ids = [view.teacher_ids_M for view in views if view.teacher_ids_M is not None]
    head = {
        "request_id": scored.request_id,
        "teacher": scored.teacher,
        "revision": scored.revision,
        "adapter": scored.adapter,
        "tokenizer_id": scored.tokenizer_id,
        "top_k": scored.top_k,
        "temperature": scored.temperature,
        "segmentation": scored.segmentation.name.lower(),
        "prompt_ids": scored.prompt_ids_P.tolist(),
        "texts": named.student.of(*_columns_of_ids(views)),
        "teacher_texts": named.teacher.of(scored.prompt_ids_P, *teacher_ids),
        "timings": {
            name: getattr(scored.timings, name) for name in ("decode_ms", "queue_ms", "forward_ms", "total_ms")
        },
    }
    return Answer(head=head, views=views)


def to_json(answer: Answer) -> bytes:
    """One object."""
    return b"".join(_pieces_of_json(answer))


def to_lines(answer: Answer) -> Iterator[bytes]:
    """A line without rows, a line per piece of a response's rows, and one that says that this is all."""
    heads = [_head_of(view) for view in answer.views]
    yield orjson.dumps(answer.head | {"responses": heads}) + b"\n"
    for index, view in enumerate(answer.views):
        step = _rows_per_piece(view)
        for start in range(0, view.num_rows, step):
            rows = {name: _listed(name, column, start, start + step) for name, column in view.rows.items()}
            yield orjson.dumps({"response": index, "rows": rows}, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
    yield b'{"done":true}\n'


def to_msgpack(call: ScoreCall, scored: ScoredCall, notes: Notes) -> bytes:
    """The fields of gRPC's message by their names; columns stay packed, enums are numbers."""
    answer = without_placeholder(call, scored) if notes.is_next else scored
    packed: bytes = msgpack.packb(_fields_of(encode_score_response(answer)))
    return packed


def _pieces_of_json(answer: Answer) -> Iterator[bytes]:
    yield orjson.dumps(answer.head)[:-1] + b',"responses":['
    for index, view in enumerate(answer.views):
        yield (b"," if index else b"") + orjson.dumps(_head_of(view))[:-1]
        step = _rows_per_piece(view)
        for name, column in view.rows.items():
            if column is None:
                yield b',"' + name.encode() + b'":null'
                continue
            yield b',"' + name.encode() + b'":['
            for start in range(0, view.num_rows, step):
                listed = _listed(name, column, start, start + step)
                yield (b"," if start else b"") + orjson.dumps(listed, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            yield b"]"
        yield b"}"
    yield b"]}"


def _head_of(view: ResponseView) -> Plain:
    """Everything of a response but its rows."""
    return {
        "ids": view.ids_T.tolist(),
        "status": [_STATUS_NAMES[status] for status in view.status_T.tolist()],
        "student_logprobs": view.student_logprobs_T,
        "teacher_ids": None if view.teacher_ids_M is None else view.teacher_ids_M.tolist(),
        "unmapped_mass": view.unmapped_mass,
        "digest": view.digest,
    }


def _listed(name: str, column: Column | None, start: int, stop: int) -> Column | list[int | None] | None:
    """Rows of a column as JSON can be made of them."""
    if column is None:
        return None
    part = column[start:stop]
    if name == "sampled_ranks":
        return [rank or None for rank in part.tolist()]
    # As 64 bits, whose digits say every 32-bit number exactly. What is not finite becomes null.
    return np.ascontiguousarray(part, np.float64 if part.dtype.kind == "f" else np.int64)


def _rows_per_piece(view: ResponseView) -> int:
    widths: list[int] = [column.shape[1] for column in view.rows.values() if column is not None and column.ndim == 2]
    return max(1, ENTRIES_PER_PIECE // max(1, *widths))


def _columns_of_ids(views: Sequence[ResponseView]) -> list[Ids]:
    columns: list[Ids] = []
    for view in views:
        columns.append(view.ids_T)
        columns += [column for name in ("support_ids", "candidate_ids") if (column := view.rows[name]) is not None]
    return columns


def _fields_of(message: Any) -> Plain:  # Any: a message of any type
    fields: Plain = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            fields[field.name] = list(value) if field.is_repeated else value
        elif field.is_repeated:
            fields[field.name] = [_fields_of(one) for one in value]
        else:
            fields[field.name] = _fields_of(value) if message.HasField(field.name) else None
    return fields
