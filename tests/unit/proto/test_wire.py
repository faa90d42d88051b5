from __future__ import annotations

import hashlib
import struct
from enum import IntEnum

import numpy as np
import pytest
from google.protobuf.descriptor import EnumDescriptor
from preceptor import wire
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import LogprobDtype, PositionStatus, TokenDtype, WireError


def ids_of(*values: int) -> wire.TokenArray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"),
    [(1, TokenDtype.U16), (65_535, TokenDtype.U16), (65_536, TokenDtype.U16), (65_537, TokenDtype.U32)],
)
def test_vocabulary_of_65536_entries_is_the_largest_stored_in_two_bytes(
    vocabulary_size: int, dtype: TokenDtype
) -> None:
    assert wire.token_dtype_for(vocabulary_size) is dtype


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (TokenDtype.U16, (0, 1, 255, 256, 65_535)),
        (TokenDtype.U32, (0, 65_535, 65_536, 4_294_967_295)),
    ],
)
def test_ids_survive_the_round_trip(dtype: TokenDtype, values: tuple[int, ...]) -> None:
    data = wire.encode_token_ids(ids_of(*values), dtype)
    assert wire.decode_token_ids(data, dtype, field="ids").tolist() == list(values)


@pytest.mark.parametrize(
    ("dtype", "layout"), [(TokenDtype.U16, "<6H"), (TokenDtype.U32, "<6I")]
)  # fmt: skip
def test_ids_are_stored_little_endian_and_row_major(dtype: TokenDtype, layout: str) -> None:
    ids_23 = np.array([[1, 2, 3], [258, 5, 6]], np.int64)
    assert wire.encode_token_ids(ids_23, dtype) == struct.pack(layout, 1, 2, 3, 258, 5, 6)
    transposed_32 = np.asfortranarray(ids_23)
    assert wire.encode_token_ids(transposed_32, dtype) == struct.pack(layout, 1, 2, 3, 258, 5, 6)


@pytest.mark.parametrize(
    ("dtype", "misfit"),
    [(TokenDtype.U16, 65_536), (TokenDtype.U16, -1), (TokenDtype.U32, 4_294_967_296), (TokenDtype.U32, -1)],
)
def test_id_that_does_not_fit_is_refused_with_the_fields_name(dtype: TokenDtype, misfit: int) -> None:
    with pytest.raises(WireError, match=r"^prompt\.ids: ids must be in \[0, ") as caught:
        wire.encode_token_ids(ids_of(3, misfit), dtype, field="prompt.ids")
    assert caught.value.field == "prompt.ids"


def test_no_ids_are_no_bytes_and_back() -> None:
    assert wire.encode_token_ids(ids_of(), TokenDtype.U16) == b""
    assert wire.decode_token_ids(b"", TokenDtype.U16, field="ids").tolist() == []


@pytest.mark.parametrize(
    ("dtype", "num_bytes"),
    [(TokenDtype.U16, 1), (TokenDtype.U16, 7), (TokenDtype.U32, 2), (TokenDtype.U32, 5), (TokenDtype.U32, 11)],
)
def test_torn_id_column_names_the_field(dtype: TokenDtype, num_bytes: int) -> None:
    with pytest.raises(WireError, match=rf"^responses\[2\]\.ids: has {num_bytes} bytes, not a multiple") as caught:
        wire.decode_token_ids(bytes(num_bytes), dtype, field="responses[2].ids")
    assert caught.value.field == "responses[2].ids"


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [(LogprobDtype.F16, 3), (LogprobDtype.F32, 6)]
)  # fmt: skip
def test_torn_logprob_column_names_the_field(dtype: LogprobDtype, num_bytes: int) -> None:
    with pytest.raises(WireError, match=f"has {num_bytes} bytes") as caught:
        wire.decode_logprobs(bytes(num_bytes), dtype, field="support_logprobs")
    assert caught.value.field == "support_logprobs"


@pytest.mark.parametrize("dtype", [0, 3, -1, 99])
def test_unknown_dtype_names_the_field(dtype: int) -> None:
    with pytest.raises(WireError, match=f"ids: dtype {dtype} is unknown"):
        wire.decode_token_ids(bytes(4), dtype, field="ids")
    with pytest.raises(WireError, match=f"support_logprobs: dtype {dtype} is unknown"):
        wire.decode_logprobs(bytes(4), dtype, field="support_logprobs")


def test_f32_logprobs_survive_bit_for_bit() -> None:
    logprobs = np.random.default_rng(0).normal(-10, 5, 1000).astype(np.float32)
    logprobs[:3] = [-np.inf, 0.0, -1e30]
    data = wire.encode_logprobs(logprobs, LogprobDtype.F32)
    assert data == struct.pack("<1000f", *logprobs.tolist())
    assert wire.decode_logprobs(data, LogprobDtype.F32, field="x").tobytes() == logprobs.tobytes()


def test_f16_logprobs_are_within_the_documented_relative_error() -> None:
    rng = np.random.default_rng(1)
    # From 2^-14, the smallest normal half, to the largest half.
    logprobs = -np.exp(rng.uniform(np.log(2.0**-14), np.log(65_504), 100_000)).astype(np.float32)
    data = wire.encode_logprobs(logprobs, LogprobDtype.F16)
    assert len(data) == 2 * len(logprobs)
    back = wire.decode_logprobs(data, LogprobDtype.F16, field="x").astype(np.float64)
    relative_error = np.abs(back / logprobs.astype(np.float64) - 1)
    assert relative_error.max() <= 2.0**-11
    # The bound is tight, so that a looser format would be noticed.
    assert relative_error.max() > 0.99 * 2.0**-11


def test_f16_logprobs_down_to_minus_32_are_off_by_at_most_0_0079_nats() -> None:
    logprobs = -np.linspace(0, 32, 200_001, dtype=np.float32)
    data = wire.encode_logprobs(logprobs, LogprobDtype.F16)
    back = wire.decode_logprobs(data, LogprobDtype.F16, field="x")
    assert np.abs(back - logprobs).max() <= 0.0079


@pytest.mark.parametrize(
    ("logprob", "stored"),
    [(-np.inf, -np.inf), (-65_504.0, -65_504.0), (-65_536.0, -np.inf), (-1e30, -np.inf), (0.0, 0.0), (-0.5, -0.5)],
)
def test_f16_keeps_infinity_and_turns_what_is_too_low_into_it(logprob: float, stored: float) -> None:
    data = wire.encode_logprobs(np.array([logprob], np.float32), LogprobDtype.F16)
    assert wire.decode_logprobs(data, LogprobDtype.F16, field="x").tolist() == [stored]


def test_statuses_survive_the_round_trip() -> None:
    statuses_T = np.array([status.value for status in PositionStatus], np.uint8)
    data = wire.encode_bytes(statuses_T)
    assert data == bytes([1, 2, 3, 4, 5, 6, 7])
    assert wire.decode_statuses(data, num_tokens=7, field="status").tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("data", "num_tokens"), [(b"\x01", 2), (b"\x01\x01\x01", 2), (b"", 1)])
def test_status_column_of_another_length_is_refused(data: bytes, num_tokens: int) -> None:
    with pytest.raises(WireError, match=f"status: holds {len(data)} entries for {num_tokens} tokens"):
        wire.decode_statuses(data, num_tokens=num_tokens, field="status")


@pytest.mark.parametrize("value", [0, 8, 255])
def test_status_that_nobody_defined_is_refused(value: int) -> None:
    with pytest.raises(WireError, match="status: holds a status outside"):
        wire.decode_statuses(bytes([1, value]), num_tokens=2, field="status")


def test_score_mask_survives_the_round_trip() -> None:
    mask_T = np.array([True, False, False, True])
    data = wire.encode_bytes(mask_T)
    assert data == b"\x01\x00\x00\x01"
    assert wire.decode_score_mask(data, num_tokens=4, field="mask").tolist() == [True, False, False, True]


def test_empty_score_mask_scores_every_token() -> None:
    assert wire.decode_score_mask(b"", num_tokens=3, field="mask").tolist() == [True, True, True]


@pytest.mark.parametrize(("data", "num_tokens"), [(b"\x01", 2), (b"\x01\x01\x01", 2), (b"\x01", 0)])
def test_score_mask_of_another_length_is_refused(data: bytes, num_tokens: int) -> None:
    with pytest.raises(WireError, match=f"mask: holds {len(data)} entries for {num_tokens} tokens"):
        wire.decode_score_mask(data, num_tokens=num_tokens, field="mask")


@pytest.mark.parametrize("value", [2, 255])
def test_score_mask_with_another_value_is_refused(value: int) -> None:
    with pytest.raises(WireError, match="mask: holds a value other than 0 and 1"):
        wire.decode_score_mask(bytes([1, value, 0]), num_tokens=3, field="mask")


def test_digest_equals_the_documented_bytes() -> None:
    by_hand = hashlib.sha256(b"preceptor.v1" + struct.pack("<Q2I3I", 2, 7, 70_000, 1, 0, 4_294_967_295)).digest()
    assert wire.digest_of_scored_ids(ids_of(7, 70_000), ids_of(1, 0, 4_294_967_295)) == by_hand


def test_digest_changes_with_any_single_id() -> None:
    prompt, response = ids_of(5, 6, 7), ids_of(8, 9)
    digests = {wire.digest_of_scored_ids(prompt, response)}
    for index in range(len(prompt)):
        changed = prompt.copy()
        changed[index] += 1
        digests.add(wire.digest_of_scored_ids(changed, response))
    for index in range(len(response)):
        changed = response.copy()
        changed[index] += 1
        digests.add(wire.digest_of_scored_ids(prompt, changed))
    assert len(digests) == 1 + 3 + 2


def test_digest_changes_when_the_boundary_between_prompt_and_response_moves() -> None:
    ids = ids_of(5, 6, 7, 8)
    digests = {wire.digest_of_scored_ids(ids[:boundary], ids[boundary:]) for boundary in range(1, 4)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (TokenDtype, pb.TokenDtype.DESCRIPTOR, "TOKEN_DTYPE_"),
        (LogprobDtype, pb.LogprobDtype.DESCRIPTOR, "LOGPROB_DTYPE_"),
        (PositionStatus, pb.PositionStatus.DESCRIPTOR, "POSITION_STATUS_"),
    ],
)
def test_enum_equals_the_protos(ours: type[IntEnum], theirs: EnumDescriptor, prefix: str) -> None:
    proto_values = {value.name.removeprefix(prefix): value.number for value in theirs.values}
    assert proto_values.pop("UNSPECIFIED") == 0
    assert {member.name: member.value for member in ours} == proto_values


@pytest.mark.parametrize(("dtype", "width"), [(TokenDtype.U16, "<u2"), (TokenDtype.U32, "<u4")])
def test_ids_can_be_looked_at_without_a_copy(dtype: TokenDtype, width: str) -> None:
    data = wire.encode_token_ids(ids_of(0, 7, 65_535), dtype)
    view = wire.view_token_ids(data, dtype, field="ids")
    assert (view.dtype, view.tolist()) == (np.dtype(width), [0, 7, 65_535])
    assert np.shares_memory(view, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(("vocabulary_size", "width"), [(65_536, "<u2"), (65_537, "<u4")])
def test_packed_ids_are_as_wide_as_their_vocabulary_needs(vocabulary_size: int, width: str) -> None:
    assert wire.packed_token_dtype(vocabulary_size) == np.dtype(width)
