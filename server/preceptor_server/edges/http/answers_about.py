"""What is answered about the teacher and about alignment, for /openapi.json. The wire's messages, in plain words."""

from __future__ import annotations

from typing import Literal

from preceptor_server.edges.http.answers import Answered, Status
from preceptor_server.edges.http.requests import Segmentation


class SpecialTokenAnswer(Answered):
    """A token with a role of its own."""

    id: int
    text: str


class CapabilitiesAnswer(Answered):
    """What can be asked of a teacher."""

    temperature: bool
    batch_invariant: bool
    candidates: bool
    other_tokenizers: bool
    entropies: bool
    weight_updates: bool
    chat_arguments: bool


class AdapterAnswer(Answered):
    """An adapter that is loaded."""

    name: str
    revision: str


class LimitsAnswer(Answered):
    """Limits of a teacher; a request beyond one is refused with its name."""

    max_top_k: int
    max_responses: int
    max_group_tokens: int
    max_message_bytes: int
    max_queue_tokens: int
    max_tokenizer_bytes: int


class TeacherAnswer(Answered):
    """One teacher; the fields are those of TeacherInfo in preceptor/v1/teacher.proto."""

    name: str
    revision: str
    engine: str
    model: str
    dtype: str
    device: str
    vocabulary_size: int
    max_model_len: int
    tokenizer_id: str
    vocabulary_id: str
    special_tokens: list[SpecialTokenAnswer]
    end_token_ids: list[int]
    has_chat_template: bool
    capabilities: CapabilitiesAnswer
    adapters: list[AdapterAnswer]
    limits: LimitsAnswer


class HttpAnswer(Answered):
    """Settings of the HTTP side."""

    tokenizers: list[str]
    """Names that `tokenizer` may say: students' tokenizers that this server can cut text with."""
    compare_with: list[str]
    """Other teachers' addresses that this page may ask."""
    is_recording: bool
    """Whether /v1/requests lists anything."""
    max_body_bytes: int
    """Largest request."""
    timeout_seconds: float
    """How long a request may take."""


class InfoAnswer(Answered):
    """What is served here."""

    server_version: str
    teachers: list[TeacherAnswer]
    limits: LimitsAnswer
    http: HttpAnswer


class PairedTokensAnswer(Answered):
    """A special token of the student, and the teacher's that stands for it."""

    student: SpecialTokenAnswer
    teacher: SpecialTokenAnswer
    reason: str


class ReportAnswer(Answered):
    """How two tokenizers relate; the fields are those of AlignmentReport in preceptor/v1/teacher.proto."""

    relation: Literal["unspecified", "identical", "padded", "permuted", "overlapping", "disjoint"]
    mapped_share: float
    warnings: list[str]
    paired: list[PairedTokensAnswer]
    masked: list[SpecialTokenAnswer]
    dropped: list[SpecialTokenAnswer]
    student_end_tokens: list[SpecialTokenAnswer]
    teacher_end_tokens: list[SpecialTokenAnswer]
    projected_share: float
    differences: list[str]
    is_one_to_one: bool


class AlignedTokenAnswer(Answered):
    """One token of the text."""

    id: int
    text: str
    """A piece of a character by its bytes, such as <0xF0>."""
    bytes: str
    """In hex; empty for a special token, which stands for none."""
    status: Status
    """ok: it would be scored."""
    reason: str | None
    """Why it would not be."""
    teacher_tokens: list[int]
    """Indices into teacher_tokens: what the teacher reads there."""


class TeacherTokenAnswer(Answered):
    """One token that the teacher reads."""

    id: int
    text: str
    is_scored: bool
    """Whether the teacher would be asked before it, for a token of the text."""


class AlignAnswer(Answered):
    """How a text is cut, aligned and masked."""

    tokenizer_id: str
    segmentation: Segmentation
    tokens: list[AlignedTokenAnswer]
    teacher_tokens: list[TeacherTokenAnswer]
    report: ReportAnswer | None
    """null where this teacher aligns nothing."""
