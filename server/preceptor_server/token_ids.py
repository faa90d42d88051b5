"""Reads a request's columns of token ids; every mistake is told by field."""

from __future__ import annotations

import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import TokenArray, WireError, decode_token_ids

from preceptor_server.errors import InvalidRequestError


def decode_ids(ids: pb.TokenIds, field: str, *, num_ids: int) -> TokenArray:
    """The ids as one row. Raises InvalidRequestError where there are none, where they are torn, or outside
    [0, num_ids)."""
    if not ids.data:
        raise InvalidRequestError(field, "is empty: at least one token is needed", reason="EMPTY")
    try:
        array = decode_token_ids(ids.data, ids.dtype, field=field)
    except WireError as error:
        raise as_invalid(error) from error
    outside = np.flatnonzero(array >= num_ids)
    if len(outside):
        raise InvalidRequestError(
            field,
            f"token id {array[outside[0]]} at position {outside[0]} is outside the vocabulary [0, {num_ids})",
            reason="TOKEN_OUT_OF_RANGE",
        )
    return array


def as_invalid(error: WireError) -> InvalidRequestError:
    """What a torn column is to the caller."""
    message = str(error).removeprefix(f"{error.field}: ")
    return InvalidRequestError(error.field, message, reason="MALFORMED_COLUMN")
