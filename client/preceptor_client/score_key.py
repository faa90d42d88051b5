"""The key of a group in a score cache: everything that its answer depends on, and nothing else.

The id of a request and its timeout are no part of it. Fields are length-prefixed, so that no two groups run together.
"""

# T = tokens of a response, C = candidates per position

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

import numpy as np
from preceptor.json_values import object_text
from preceptor.wire import TokenArray

from preceptor_client.request import GroupRequest
from preceptor_client.types import Chat, ServerInfo, StudentIds, TeacherIds, TeacherInfo, Text

_VERSION = b"preceptor score 1"
"""Changes whenever the fields do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """A teacher with one adapter or none, at one revision of its weights, as its server describes it."""

    teacher: str
    revision: str
    tokenizer_id: str
    vocabulary_id: str
    dtype: str
    server_version: str
    """Decides what a server does where a request leaves it the choice."""


def identity_of(info: ServerInfo, *, teacher: str, adapter: str) -> TeacherIdentity | None:
    """Of the teacher that a request with these names is scored by; None where the server would refuse it."""
    matching = [one for one in info.teachers if teacher in ("", one.name)]
    if len(matching) != 1 or adapter not in ("", *matching[0].adapters):
        return None
    (one,) = matching
    return TeacherIdentity(
        teacher=one.name,
        revision=_revision(one, adapter),
        tokenizer_id=one.tokenizer_id,
        vocabulary_id=one.vocabulary_id,
        dtype=one.dtype,
        server_version=info.server_version,
    )


def score_key(group: GroupRequest, identity: TeacherIdentity) -> bytes:
    """32 bytes."""
    fields = _Fields()
    for text in (
        identity.teacher,
        group.adapter,
        identity.revision,
        identity.tokenizer_id,
        identity.vocabulary_id,
        identity.dtype,
        group.tokenizer_id or identity.tokenizer_id,
        f"default of {identity.server_version}" if group.segmentation is None else group.segmentation.name,
    ):
        fields.add_text(text)
    _add_prompt(fields, group)
    fields.add(struct.pack("<Q", len(group.responses_T)))
    for ids_T, mask_T, candidate_ids_TC in zip(
        group.responses_T, group.score_masks_T, group.candidate_ids_TC, strict=True
    ):
        fields.add_ids(ids_T)
        fields.add(np.packbits(mask_T).tobytes())
        fields.add(b"" if candidate_ids_TC is None else struct.pack("<QQ", *candidate_ids_TC.shape))
        fields.add_ids(np.empty(0, np.int64) if candidate_ids_TC is None else candidate_ids_TC)
    fields.add(struct.pack("<Qd?B", group.top_k, group.temperature, group.batch_invariant, int(group.logprob_dtype)))
    fields.add_ids(np.array(group.paper_token_ids, np.int64))
    return fields.digest()


class _Fields:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.add(_VERSION)

    def add(self, data: bytes) -> None:
        self._hash.update(struct.pack("<Q", len(data)))
        self._hash.update(data)

    def add_text(self, text: str) -> None:
        self.add(text.encode("utf-8", "surrogatepass"))

    def add_ids(self, ids: TokenArray) -> None:
        self.add(np.ascontiguousarray(ids, dtype="<i8").tobytes())

    def digest(self) -> bytes:
        return self._hash.digest()


def _add_prompt(fields: _Fields, group: GroupRequest) -> None:
    match group.prompt:
        case Text(text=text, omit_special_tokens=omit):
            fields.add_text("text without special tokens" if omit else "text")
            fields.add_text(text)
        case Chat() as chat:
            fields.add_text("chat")
            fields.add_text(_chat_text(chat))
        case StudentIds() | TeacherIds() as prompt:
            assert group.prompt_ids_P is not None, "a prompt of ids was checked into an array"
            fields.add_text("student ids" if isinstance(prompt, StudentIds) else "teacher ids")
            fields.add_ids(group.prompt_ids_P)


def _chat_text(chat: Chat) -> str:
    """All that a template may read, as JSON. The order of an object's keys stays: a template may print it."""
    messages = [
        [
            message.role,
            message.content,
            [[call.id, call.name, object_text(call.arguments)] for call in message.tool_calls],
            message.tool_call_id,
            message.name,
            message.reasoning_content,
        ]
        for message in chat.messages
    ]
    tools = [object_text(tool) for tool in chat.tools]
    return json.dumps([messages, tools, object_text(chat.template_arguments)])


def _revision(teacher: TeacherInfo, adapter: str) -> str:
    return teacher.revision_of(adapter)
