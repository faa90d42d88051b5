"""Packs numpy columns into the bytes of preceptor.v1 and back. Knows nothing of gRPC, of models or of tokenizers.

Both sides use it, so that what one writes the other reads, both compute the same digest, and both spell alike the few
names that the proto cannot hold.
"""

# T = tokens of a response, N = its scored positions, K = support size, V = vocabulary size

from __future__ import annotations

import hashlib
import io
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

TokenArray = npt.NDArray[np.int64]
PackedTokenArray = npt.NDArray[np.integer[Any]]  # Any: of whatever width
"""Token ids in integers of any width: as a message holds them (u16, u32), or as int64. Many ids are kept so until they
are computed with: as int64 they are four times as large as their message. Arithmetic in them may overflow."""
LogprobArray = npt.NDArray[np.float32]
StatusArray = npt.NDArray[np.uint8]

CALLER_METADATA_KEY = "preceptor-caller"
"""Request metadata under which a client says who asks, so that a server can share fairly between callers."""

ERROR_DOMAIN = "preceptor"
"""The google.rpc.ErrorInfo domain of a server's own refusals; what gRPC or a proxy refuses has another, or none."""

_ENTRIES_PER_PIECE = 1 << 16
"""Of a column that is converted piece by piece."""

U16_VOCABULARY_SIZE = 1 << 16
"""Largest vocabulary whose ids fit two bytes."""


class WireError(ValueError):
    """A column does not hold what its header says. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class TokenDtype(IntEnum):
    """How token ids are stored; the values of preceptor.v1.TokenDtype."""

    U16 = 1
    U32 = 2


class LogprobDtype(IntEnum):
    """How support logprobs are stored; the values of preceptor.v1.LogprobDtype."""

    F16 = 1
    F32 = 2


class PositionStatus(IntEnum):
    """Why a position has, or has not, a row; the values of preceptor.v1.PositionStatus."""

    OK = 1
    EXCLUDED = 2
    NON_FINITE = 3
    SPECIAL = 4
    MISALIGNED = 5
    UNMAPPED = 6
    BEYOND_CONTEXT = 7


class SegmentationPolicy(IntEnum):
    """What to do where student and teacher cut the same bytes into other tokens; the values of
    preceptor.v1.SegmentationPolicy, whose comments say what each does."""

    AS_IS = 1
    MASK = 2
    CANONICAL = 3
    PAPER = 4


class VocabularyRelation(IntEnum):
    """How two vocabularies relate; the values of preceptor.v1.VocabularyRelation."""

    IDENTICAL = 1
    PADDED = 2
    PERMUTED = 3
    OVERLAPPING = 4
    DISJOINT = 5

    @property
    def is_one_to_one(self) -> bool:
        """Every token of one side has exactly one counterpart on the other, padding aside."""
        return self in (VocabularyRelation.IDENTICAL, VocabularyRelation.PADDED, VocabularyRelation.PERMUTED)


_NumpyDtype = np.dtype[Any]  # Any: which number it holds is its value, not its type
_NUMPY_TOKEN_DTYPES: dict[TokenDtype, _NumpyDtype] = {
    TokenDtype.U16: np.dtype("<u2"),
    TokenDtype.U32: np.dtype("<u4"),
}
_NUMPY_LOGPROB_DTYPES: dict[LogprobDtype, _NumpyDtype] = {
    LogprobDtype.F16: np.dtype("<f2"),
    LogprobDtype.F32: np.dtype("<f4"),
}


def token_dtype_for(vocabulary_size: int) -> TokenDtype:
    """The narrowest dtype that holds every id of a vocabulary."""
    return TokenDtype.U16 if vocabulary_size <= U16_VOCABULARY_SIZE else TokenDtype.U32


def packed_token_dtype(vocabulary_size: int) -> np.dtype[np.integer[Any]]:
    """numpy's type of `token_dtype_for`."""
    return _NUMPY_TOKEN_DTYPES[token_dtype_for(vocabulary_size)]


def encode_token_ids(ids: TokenArray, dtype: TokenDtype, *, field: str = "token_ids") -> bytes:
    """Stores ids of any shape, row-major. Raises WireError where one does not fit `dtype`."""
    width = _NUMPY_TOKEN_DTYPES[dtype]
    if ids.size and (ids.min() < 0 or ids.max() > np.iinfo(width).max):
        raise WireError(field, f"ids must be in [0, {np.iinfo(width).max}] to be stored as {dtype.name}")
    return ids.astype(width).tobytes()


def decode_token_ids(data: bytes, dtype: int, *, field: str) -> TokenArray:
    """Reads ids, shape [len(data) / width]. Raises WireError on an unknown dtype or a torn last id."""
    return view_token_ids(data, dtype, field=field).astype(np.int64)


def view_token_ids(data: bytes, dtype: int, *, field: str) -> PackedTokenArray:
    """As `decode_token_ids`, without a copy: a read-only view of `data`, which it keeps alive."""
    if dtype not in TokenDtype.__members__.values():
        raise WireError(field, f"dtype {dtype} is unknown: set it to U16 (1) or U32 (2)")
    return _read(data, _NUMPY_TOKEN_DTYPES[TokenDtype(dtype)], field)


def encode_logprobs(logprobs: LogprobArray, dtype: LogprobDtype) -> bytes:
    """Stores logprobs row-major. In F16 what rounds to less than -65,504 becomes -inf."""
    width, flat = _NUMPY_LOGPROB_DTYPES[dtype], logprobs.ravel()
    # A piece at a time: the bytes of a large column are held once, and not also as an array of the other width.
    packed = io.BytesIO(bytes(flat.size * width.itemsize))
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _ENTRIES_PER_PIECE):
            packed.write(flat[start : start + _ENTRIES_PER_PIECE].astype(width).data)
    return packed.getvalue()


def decode_logprobs(data: bytes, dtype: int, *, field: str) -> LogprobArray:
    """Reads logprobs as float32, shape [len(data) / width]."""
    if dtype not in LogprobDtype.__members__.values():
        raise WireError(field, f"dtype {dtype} is unknown: set it to F16 (1) or F32 (2)")
    return _read(data, _NUMPY_LOGPROB_DTYPES[LogprobDtype(dtype)], field).astype(np.float32)


def encode_bytes(values: npt.NDArray[np.bool_] | StatusArray) -> bytes:
    """Stores one u8 per token: statuses and score masks."""
    return values.astype(np.uint8).tobytes()


def decode_statuses(data: bytes, *, num_tokens: int, field: str) -> StatusArray:
    """Reads one status per response token, shape [T]."""
    statuses_T = np.frombuffer(data, np.uint8)
    if len(statuses_T) != num_tokens:
        raise WireError(field, f"holds {len(statuses_T)} entries for {num_tokens} tokens")
    known = [status.value for status in PositionStatus]
    if not np.isin(statuses_T, known).all():
        raise WireError(field, f"holds a status outside {known}")
    return statuses_T


def decode_score_mask(data: bytes, *, num_tokens: int, field: str) -> npt.NDArray[np.bool_]:
    """Reads a score mask, shape [T]; empty data means that every token is scored."""
    if not data:
        return np.ones(num_tokens, np.bool_)
    mask_T = np.frombuffer(data, np.uint8)
    if len(mask_T) != num_tokens:
        raise WireError(field, f"holds {len(mask_T)} entries for {num_tokens} tokens: send one per token, or none")
    if mask_T.max() > 1:
        raise WireError(field, "holds a value other than 0 and 1")
    return mask_T.astype(np.bool_)


def digest_of_scored_ids(prompt_ids: TokenArray, response_ids: TokenArray) -> bytes:
    """SHA-256 of the ids that were scored: the prompt's length as u64, the prompt, the response, ids as u32.

    The server computes it from what it fed to the model, or mapped to what it fed, the client from what it sent; they
    must agree before a number may reach a loss.
    """
    digest = hashlib.sha256(b"preceptor.v1")
    digest.update(len(prompt_ids).to_bytes(8, "little"))
    digest.update(prompt_ids.astype("<u4").tobytes())
    digest.update(response_ids.astype("<u4").tobytes())
    return digest.digest()


def _read(data: bytes, dtype: np.dtype[Any], field: str) -> npt.NDArray[Any]:
    if len(data) % dtype.itemsize:
        raise WireError(field, f"has {len(data)} bytes, not a multiple of {dtype.itemsize} ({dtype.name}): truncated?")
    return np.frombuffer(data, dtype)
