"""Malformed messages: valid ones of every rpc, changed in their wire format or in what they mean, and plain bytes.

Knows protobuf's wire format (https://protobuf.dev/programming-guides/encoding), and no transport.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from preceptor.v1 import teacher_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "/preceptor.v1.TeacherService/"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_TEXT = 20_000
Seed = tuple[str, bytes]
"""Method and message."""
OUTSIDE = pb.Response(ids=pb.TokenIds(data=b"\xff\xff", dtype=pb.TOKEN_DTYPE_U16))
"""A response with an id that no vocabulary here has."""
OUTSIDE_SHARE = 0.9
"""Of the scores, those that end with it. Of the others some mean something after all, and have their fair share of the
engine: too many would take from good callers what is theirs by right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field as it stands in a message."""

    number: int
    wire_type: int
    payload: bytes
    """Without tag and length."""

    def encode(self) -> bytes:
        tag = varint(self.number << 3 | self.wire_type)
        return tag + (varint(len(self.payload)) if self.wire_type == BYTES else b"") + self.payload


def varint(value: int) -> bytes:
    """Of a number of at most 64 bits."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def split(message: bytes) -> list[Field]:
    """The fields of a message. Raises ValueError where it is none."""
    fields, position = [], 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        start = position
        match tag & 7:
            case 0:
                _, position = _read_varint(message, position)
            case 1:
                position += 8
            case 2:
                length, start = _read_varint(message, position)
                position = start + length
            case 5:
                position += 4
            case other:
                raise ValueError(f"wire type {other}")
        if position > len(message) or not tag >> 3:
            raise ValueError("the message ends too early, or a field has no number")
        fields.append(Field(number=tag >> 3, wire_type=tag & 7, payload=message[start:position]))
    return fields


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("a varint without an end")


def valid_messages() -> list[Seed]:
    """One or more of each rpc; small, and cheap to score."""
    ids = pb.TokenIds(data=bytes([1, 0, 2, 0, 3, 0]), dtype=pb.TOKEN_DTYPE_U16)
    candidates = pb.CandidateIds(ids=pb.TokenIds(data=bytes(6), dtype=pb.TOKEN_DTYPE_U16), num_per_position=1)
    group = pb.ScoreRequest(
        request_id="a",
        prompt=pb.Prompt(teacher_ids=ids),
        responses=[pb.Response(ids=ids, score_mask=b"\1\0\1", candidates=candidates), pb.Response(ids=ids)],
        top_k=4,
        temperature=1.0,
    )
    text, chat, student = (pb.ScoreRequest(), pb.ScoreRequest(), pb.ScoreRequest())
    for one in (text, chat, student):
        one.CopyFrom(group)
    text.prompt.CopyFrom(pb.Prompt(text=pb.TextPrompt(text="hello")))
    messages = [pb.ChatMessage(role="user", content="hello", tool_calls=[pb.ToolCall(name="f", arguments="{}")])]
    chat.prompt.CopyFrom(pb.Prompt(chat=pb.ChatPrompt(messages=messages, tools=["{}"], template_arguments="{}")))
    student.prompt.CopyFrom(pb.Prompt(student_ids=ids))
    student.tokenizer_id = "0" * 64
    registration = pb.RegisterTokenizerRequest(tokenizer_id="0" * 64)
    update = pb.UpdateWeightsRequest(path="../../etc")
    scores: list[tuple[str, Message]] = [("Score", one) for one in (group, text, chat, student)]
    others: list[tuple[str, Message]] = [
        ("RegisterTokenizer", registration),
        ("UpdateWeights", update),
        ("GetInfo", pb.GetInfoRequest(include_tokenizer=True)),
    ]
    # Scores are most of what a server is sent.
    return [(name, one.SerializeToString()) for name, one in [*scores, *scores, *scores, *others]]


class Mutator:
    """An endless supply of malformed messages; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seeds = valid_messages()
        self._ways: Sequence[Callable[[bytes], bytes]] = (
            self._raw_bytes,
            self._truncated,
            self._flipped,
            self._huge_varint,
            self._long_length,
            self._wrong_wire_type,
            self._deep,
            self._unknown_group,
            self._repeated,
            self._dropped,
            self._nonsense_value,
            self._bad_text,
        )

    def next(self) -> tuple[str, str, bytes]:
        """Method, the way in which it is malformed, and the message. A few mean something all the same."""
        method, message = self._random.choice(self._seeds)
        way = self._random.choice(self._ways)
        changed = way(message)
        if method == "Score" and self._random.random() < OUTSIDE_SHARE:
            changed += pb.ScoreRequest(responses=[OUTSIDE]).SerializeToString()
        return SERVICE + method, way.__name__.strip("_"), changed

    def _raw_bytes(self, message: bytes) -> bytes:  # noqa: ARG002  as the other ways
        return self._random.randbytes(self._random.choice((1, 2, 7, 64, 1000)))

    def _truncated(self, message: bytes) -> bytes:
        return message[: self._random.randrange(len(message))]

    def _flipped(self, message: bytes) -> bytes:
        changed = bytearray(message)
        for _ in range(self._random.randint(1, 4)):
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _huge_varint(self, message: bytes) -> bytes:
        number = self._random.choice((7, 9, 10, 11, 12))
        ending = self._random.choice((b"\x01", b"\x7f", b"\xff", b""))
        return message + varint(number << 3) + b"\xff" * self._random.choice((4, 9, 10, 20)) + ending

    def _long_length(self, message: bytes) -> bytes:
        """A length far beyond the end."""
        number = self._random.choice((1, 2, 5, 6))
        return message + varint(number << 3 | BYTES) + varint(self._random.choice((2**20, 2**31 - 1, 2**32, 2**63)))

    def _wrong_wire_type(self, message: bytes) -> bytes:
        def change(field: Field) -> bytes:
            wire_type = self._random.choice((VARINT, FIXED64, BYTES, FIXED32, 3, 4, 6, 7))
            return varint(field.number << 3 | wire_type) + field.payload

        return self._with_one_changed(message, change)

    def _deep(self, message: bytes) -> bytes:
        """JSON inside JSON ..., deeper than a parser may follow, as a tool of a chat or as its template's arguments."""
        depth = self._random.choice((50, 65, 1000, 20_000))
        nested = b'{"a":' * depth + b"1" + b"}" * self._random.choice((0, depth))
        for number in (self._random.choice((2, 3)), 4, 5):
            nested = Field(number=number, wire_type=BYTES, payload=nested).encode()
        return message + nested

    def _unknown_group(self, message: bytes) -> bytes:
        """Groups, which proto3 has no more, opened and perhaps not closed."""
        depth = self._random.choice((1, 90, 110, 1000))
        return message + b"\xa3\x06" * depth + b"\xa4\x06" * self._random.choice((0, depth // 2, depth))

    def _repeated(self, message: bytes) -> bytes:
        fields = split(message)
        one = self._random.choice(fields)
        return message + one.encode() * self._random.choice((1, 2, 200))

    def _dropped(self, message: bytes) -> bytes:
        return self._with_one_changed(message, lambda _: b"")

    def _nonsense_value(self, message: bytes) -> bytes:
        """The right type, another value; at any depth."""

        def change(field: Field) -> bytes:
            payload = field.payload
            if field.wire_type == VARINT:
                payload = varint(self._random.choice((0, 1, 99, 1025, 2**31 - 1, 2**32 - 1, 2**63)))
            elif field.wire_type == FIXED64:
                payload = self._random.choice((bytes(8), b"\xff" * 8, b"\0" * 6 + b"\xf0\x7f", b"\0" * 7 + b"\x80"))
            elif self._random.random() < 0.7 and payload:
                payload = self._nested(payload) or b""
            else:
                payload = self._random.randbytes(self._random.choice((0, 1, 3, 129, 2000)))
            return Field(number=field.number, wire_type=field.wire_type, payload=payload).encode()

        return self._with_one_changed(message, change)

    def _nested(self, payload: bytes) -> bytes | None:
        try:
            split(payload)
        except ValueError:
            return self._random.randbytes(len(payload))
        return self._nonsense_value(payload)

    def _bad_text(self, message: bytes) -> bytes:
        """Where text must be UTF-8, or is longer than anyone writes."""
        text = self._random.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\0" * 10, b"a" * MAX_TEXT))
        return message + Field(number=self._random.choice((1, 2, 3, 4)), wire_type=BYTES, payload=text).encode()

    def _with_one_changed(self, message: bytes, change: Callable[[Field], bytes]) -> bytes:
        fields = split(message)
        chosen = self._random.randrange(len(fields))
        return b"".join(change(one) if index == chosen else one.encode() for index, one in enumerate(fields))
