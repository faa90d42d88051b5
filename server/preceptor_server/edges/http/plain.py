"""Plain JSON, and messages of the wire as data for it: enums by their short names, no field left out, bytes never."""

from __future__ import annotations

from typing import Any

import orjson
from google.protobuf.message import Message
from starlette.responses import Response

JSON = "application/json"


def to_plain(message: Message) -> dict[str, Any]:  # Any: whatever JSON holds
    """VOCABULARY_RELATION_IDENTICAL becomes "identical"; an absent message becomes null."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_BYTES:
            continue
        value = getattr(message, field.name)
        if field.is_repeated:
            plain[field.name] = [_value(field, one) for one in value]
        elif field.message_type is not None and not message.HasField(field.name):
            plain[field.name] = None
        else:
            plain[field.name] = _value(field, value)
    return plain


def _value(field: Any, value: Any) -> Any:  # Any: a descriptor, and a value of its type
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is None:
        return value
    names = [one.name for one in field.enum_type.values]
    prefix = names[0].removesuffix("UNSPECIFIED")
    return str(field.enum_type.values_by_number[value].name).removeprefix(prefix).lower()


def json_response(content: object) -> Response:
    """An answer that is small enough to be written at once."""
    return Response(orjson.dumps(content), media_type=JSON)
