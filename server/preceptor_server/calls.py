"""What an edge asks the core, and what the core answers: dataclasses over numpy arrays, without protobuf or HTTP."""

# P = prompt tokens, T = tokens of a response, N = scored positions, C = candidates per position

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobDtype, PackedTokenArray, SegmentationPolicy, TokenArray

from preceptor_server.alignment.sent_chat import SentChat
from preceptor_server.types import ResponseColumns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudentIds:
    """A prompt in ids of the tokenizer that the call names."""

    ids_P: TokenArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherIds:
    """A prompt in ids of the teacher's own tokenizer."""

    ids_P: TokenArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt as text, for the teacher's tokenizer."""

    text: str
    omit_special_tokens: bool = False


Prompt = StudentIds | TeacherIds | Text | SentChat


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AskedResponse:
    """One response as a caller sent it. Its columns have the right lengths; whether its ids exist is not known yet."""

    ids_T: TokenArray
    score_mask_T: npt.NDArray[np.bool_]
    candidate_ids_TC: PackedTokenArray | None = None
    """Ids whose logprobs are wanted too, in the integers in which they came. None = none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreCall:
    """One group as a caller asked for it. It is well formed; whether this teacher can answer it is not known yet."""

    prompt: Prompt
    responses: tuple[AskedResponse, ...]
    top_k: int
    temperature: float
    request_id: str = ""
    teacher: str = ""
    """Name of a hosted teacher. Empty: the only one."""
    adapter: str = ""
    """Name of one of its adapters. Empty: none."""
    tokenizer_id: str = ""
    """Of the ids that the call carries. Empty: the teacher's own."""
    logprob_dtype: LogprobDtype = LogprobDtype.F16
    batch_invariant: bool = False
    segmentation: SegmentationPolicy | None = None
    """None: the server chooses."""
    paper_token_ids: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Memory of the call's arrays and texts, in bytes."""
        total = sum(_num_bytes(response) for response in self.responses)
        match self.prompt:
            case StudentIds(ids_P=ids_P) | TeacherIds(ids_P=ids_P):
                return total + ids_P.nbytes
            case Text(text=text):
                return total + len(text)
            case SentChat() as chat:
                return total + chat.num_characters


def _num_bytes(response: AskedResponse) -> int:
    candidates = response.candidate_ids_TC
    return response.ids_T.nbytes + response.score_mask_T.nbytes + (0 if candidates is None else candidates.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredResponse:
    """What is answered about one response, in the student's ids."""

    columns: ResponseColumns
    digest: bytes
    """`preceptor.wire.digest_of_scored_ids` of prompt and response as the call carried them."""
    teacher_ids_M: TokenArray | None = None
    """What the teacher read in its place; None where that is the response itself."""
    teacher_rows_N: npt.NDArray[np.int64] | None = None
    """For each row the index into `teacher_ids_M` of the token before which the teacher was asked."""
    unmapped_mass: float = 0.0
    """Mean mass of the teacher's likeliest tokens that have no place in the student's vocabulary."""

    @property
    def num_positions(self) -> int:
        """Scored ones."""
        return len(self.columns.log_tail_mass_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of a call went, in milliseconds."""

    decode_ms: float = 0.0
    """Validating it, and reading its prompt."""
    queue_ms: float = 0.0
    """Waiting for a place in a batch."""
    forward_ms: float = 0.0
    """The forward, which other groups may have shared."""
    total_ms: float = 0.0
    """From the call's arrival until its answer was there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredCall:
    """The answer to a call: all that an edge needs to encode it."""

    responses: tuple[ScoredResponse, ...]
    request_id: str
    teacher: str
    revision: str
    """Of the weights that scored it."""
    adapter: str
    tokenizer_id: str
    """Of the call's ids; never empty."""
    top_k: int
    temperature: float
    logprob_dtype: LogprobDtype
    segmentation: SegmentationPolicy
    """As applied."""
    student_vocabulary_size: int
    teacher_vocabulary_size: int
    prompt_ids_P: TokenArray
    """In the teacher's ids."""
    returns_prompt_ids: bool
    """The caller cannot know the prompt's ids in the teacher's vocabulary."""
    timings: Timings

    @property
    def num_positions(self) -> int:
        """Scored ones, of all responses."""
        return sum(response.num_positions for response in self.responses)

    @property
    def num_bytes(self) -> int:
        """Memory of the columns, in bytes: about what encoding the answer has to look at."""
        return sum(_num_column_bytes(response.columns) for response in self.responses)


def _num_column_bytes(columns: ResponseColumns) -> int:
    candidates = columns.candidate_logprobs_NC
    named = 0 if candidates is None else candidates.nbytes
    return columns.support_ids_NK.nbytes + columns.support_logprobs_NK.nbytes + named
