"""Reads a message's columns of token ids; every mistake is told by field."""

from __future__ import annotations

import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import PackedTokenArray, TokenArray, WireError, view_token_ids

from preceptor_server.errors import InvalidRequestError


def decode_ids(ids: pb.TokenIds, field: str) -> TokenArray:
    """The ids as one row. Raises InvalidRequestError where there are none, or where they are torn."""
    return view_ids(ids, field).astype(np.int64)


def view_ids(ids: pb.TokenIds, field: str) -> PackedTokenArray:
    """As `decode_ids`, in the integers of the message. They have a copy of its bytes, and nothing else of it."""
    data = ids.data  # each time that it is asked for a message makes a copy
    if not data:
        raise InvalidRequestError(field, "is empty: at least one token is needed", reason="EMPTY")
    try:
        return view_token_ids(data, ids.dtype, field=field)
    except WireError as error:
        raise as_invalid(error) from error


def as_invalid(error: WireError) -> InvalidRequestError:
    """What a torn column is to the caller."""
    message = str(error).removeprefix(f"{error.field}: ")
    return InvalidRequestError(error.field, message, reason="MALFORMED_COLUMN")
