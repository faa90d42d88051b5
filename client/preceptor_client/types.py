"""What the client library takes and returns: frozen dataclasses over numpy arrays, without protobuf."""

# T = tokens of a response, N = its scored positions, K = support size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, StatusArray, TokenArray


@dataclass(frozen=True, slots=True)
class StudentIds:
    """A prompt in ids of the student's tokenizer."""

    ids: Sequence[int] | TokenArray


@dataclass(frozen=True, slots=True)
class TeacherIds:
    """A prompt in ids of the teacher's own tokenizer."""

    ids: Sequence[int] | TokenArray


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt that the teacher's tokenizer encodes, with the special tokens that it adds by itself unless omitted."""

    text: str
    omit_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt rendered with the teacher's own chat template, followed by its opening of an assistant's turn."""

    messages: tuple[ChatMessage, ...]


Prompt = StudentIds | TeacherIds | Text | Chat


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialToken:
    """A token with a role of its own."""

    id: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What can be asked of one teacher."""

    temperature: bool
    batch_invariant: bool
    candidates: bool
    other_tokenizers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherInfo:
    """One teacher, as GetInfo describes it."""

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
    special_tokens: tuple[SpecialToken, ...]
    end_token_ids: tuple[int, ...]
    has_chat_template: bool
    capabilities: Capabilities
    tokenizer_json: str
    """The teacher's tokenizer.json; empty unless asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server; a request beyond one is refused."""

    max_top_k: int
    max_responses: int
    max_group_tokens: int
    max_message_bytes: int
    max_queue_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server hosts, and its limits."""

    server_version: str
    teachers: tuple[TeacherInfo, ...]
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of a request went, in milliseconds."""

    decode_ms: float
    queue_ms: float
    forward_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseScores:
    """What the teacher thinks of one response.

    Row i of every column belongs to response token `positions_N[i]`: the teacher's distribution *before* that token.
    Logprobs are natural, normalised over the whole vocabulary at the requested temperature.
    """

    status_T: StatusArray
    """Values of preceptor.wire.PositionStatus, one per response token."""
    positions_N: npt.NDArray[np.int64]
    """Indices of the response tokens that were scored (status OK), ascending."""
    support_ids_NK: TokenArray
    """The teacher's K likeliest tokens, by descending logprob."""
    support_logprobs_NK: LogprobArray
    sampled_logprobs_N: LogprobArray
    """The teacher's logprob of the student's own token."""
    log_tail_mass_N: LogprobArray
    """Log of the teacher's mass outside the support; -inf where there is none."""
    entropies_N: LogprobArray
    """Entropy of the teacher over the whole vocabulary, in nats."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupScores:
    """The answer to one group: one ResponseScores per response, in the request's order."""

    teacher: str
    revision: str
    tokenizer_id: str
    top_k: int
    temperature: float
    prompt_ids: TokenArray
    """The prompt as the teacher read it, in the teacher's ids."""
    responses: tuple[ResponseScores, ...]
    timings: Timings
