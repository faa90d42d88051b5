"""What the client library takes and returns: frozen dataclasses over numpy arrays, without protobuf."""

# T = tokens of a response, N = its scored positions, K = support size, C = candidates per position

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from preceptor.chat import Chat as Chat
from preceptor.chat import ChatMessage as ChatMessage
from preceptor.chat import ToolCall as ToolCall
from preceptor.wire import LogprobArray, PositionStatus, SegmentationPolicy, StatusArray, TokenArray, VocabularyRelation


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
    entropies: bool
    """Whether scores come with the teacher's entropies."""
    weight_updates: bool
    """Whether its weights may be replaced while it serves."""
    chat_arguments: bool = False
    """Whether it honours what a Chat says beyond roles and contents: tools, calls of tools, template arguments."""


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
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Names of the adapters that are loaded, and the revisions that answers scored with them carry."""

    def revision_of(self, adapter: str) -> str:
        """What answers carry that are scored with this adapter; "" is the teacher as it is."""
        return self.adapters[adapter] if adapter else self.revision


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUpdate:
    """The weights that serve after an update."""

    revision: str
    """What answers carry from now on; empty where an adapter was taken away."""
    previous_revision: str
    """What they carried before; empty where the adapter is new."""
    paused_ms: float
    """How long the server scored nothing for it, in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server; a request beyond one is refused."""

    max_top_k: int
    max_responses: int
    max_group_tokens: int
    max_message_bytes: int
    max_queue_tokens: int
    max_tokenizer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What a server hosts, and its limits."""

    server_version: str
    teachers: tuple[TeacherInfo, ...]
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTokens:
    """A special token of the student, and the teacher's that stands for it."""

    student: SpecialToken
    teacher: SpecialToken
    reason: str
    """"same text", "end of response" or "as configured"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentReport:
    """How a student's tokenizer relates to a teacher's."""

    relation: VocabularyRelation
    is_one_to_one: bool
    """Whether ids correspond one to one: what the policies AS_IS, MASK and PAPER need."""
    mapped_share: float
    """Share of the student's vocabulary with a counterpart, in [0, 1]."""
    projected_share: float
    """Share of the teacher's vocabulary with a place in the student's, in [0, 1]."""
    differences: tuple[str, ...]
    """Parts in which the tokenizers differ: "merges", "normalizer", "pre_tokenizer", "added_tokens" or
    "chat_template"."""
    paired: tuple[PairedTokens, ...]
    masked: tuple[SpecialToken, ...]
    """Special tokens of the student without a counterpart: their positions have no score."""
    dropped: tuple[SpecialToken, ...]
    """Special tokens of the teacher without a counterpart: their mass is tail."""
    student_end_tokens: tuple[SpecialToken, ...]
    teacher_end_tokens: tuple[SpecialToken, ...]
    warnings: tuple[str, ...]
    """In plain words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A tokenizer that a server knows."""

    tokenizer_id: str
    """What to score with: it stands for the tokenizer, its end tokens and its pairs."""
    report: AlignmentReport


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
    """The teacher's K likeliest tokens, in the student's ids, by descending logprob. An entry whose logprob is -inf is
    outside the support: across vocabularies fewer than K may be left, and the rest is filled up so."""
    support_logprobs_NK: LogprobArray
    sampled_logprobs_N: LogprobArray
    """The teacher's logprob of the student's own token."""
    log_tail_mass_N: LogprobArray
    """Log of the teacher's mass outside the support; -inf where there is none."""
    entropies_N: LogprobArray | None
    """Entropy of the teacher over its whole vocabulary, in nats; None from a teacher that does not compute it."""
    teacher_ids_M: TokenArray | None = None
    """The teacher's ids that were scored in place of the response; None where they are the response's own."""
    teacher_rows_N: npt.NDArray[np.int64] | None = None
    """For each row the index into `teacher_ids_M` of the token before which the teacher was asked."""
    unmapped_mass: float = 0.0
    """Mean teacher mass, among its likeliest tokens, that has no place in the student's vocabulary; it is tail."""
    candidate_ids_NC: TokenArray | None = None
    """The ids that the request named at the scored positions; None unless it named some."""
    candidate_logprobs_NC: LogprobArray | None = None
    """The teacher's logprobs of those; -inf where the teacher has no such token."""

    @property
    def scored_share(self) -> float:
        """Share of the positions that were to be scored which have a score."""
        num_asked = int((self.status_T != PositionStatus.EXCLUDED).sum())
        return len(self.positions_N) / num_asked if num_asked else 0.0

    @property
    def support_mass(self) -> float:
        """Mean teacher mass inside the support; 0 where nothing was scored."""
        return float(-np.expm1(self.log_tail_mass_N.astype(np.float64)).mean()) if len(self.log_tail_mass_N) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupScores:
    """The answer to one group: one ResponseScores per response, in the request's order."""

    teacher: str
    revision: str
    tokenizer_id: str
    top_k: int
    temperature: float
    segmentation: SegmentationPolicy
    """As applied."""
    prompt_ids: TokenArray
    """The prompt as the teacher read it, in the teacher's ids."""
    responses: tuple[ResponseScores, ...]
    timings: Timings
