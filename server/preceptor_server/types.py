"""What flows between the core and an engine: frozen dataclasses over numpy arrays, without protobuf or torch."""

# P = prompt tokens, T = tokens of a response, N = scored positions, K = support size, C = candidates per position

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, PackedTokenArray, StatusArray, TokenArray

from preceptor_server.context_costs import FLAT, ContextCosts

CANDIDATES_PER_TOKEN = 64
"""They cost next to no time, and up to half a kilobyte while they wait."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseToScore:
    """One response, and which of its tokens to score."""

    ids_T: TokenArray
    score_mask_T: npt.NDArray[np.bool_]
    candidate_ids_TC: PackedTokenArray | None = None
    """Ids whose logprobs are wanted too, one row per token, scored or not; the same id may stand in a row twice. None
    = none. Integers of any width: u16 or u32 where they came so, for they may be all of a message. Engines turn them
    into int64 a few rows at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreGroup:
    """What an engine scores at once: a prompt and the responses that share it, in the teacher's ids.

    Already validated: P >= 1, every T and C >= 1, every id inside the vocabulary, prompt + response inside the
    context.
    """

    prompt_ids_P: TokenArray
    responses: tuple[ResponseToScore, ...]
    top_k: int
    temperature: float
    batch_invariant: bool = False
    adapter: str = ""
    """Name of one of EngineInfo.adapters. Empty: the teacher as it is."""
    num_bytes_besides: int = 0
    """Bytes that are held until it is answered beside its own arrays: the student's ids, where these are others."""

    @property
    def num_tokens(self) -> int:
        """Tokens of one forward over the group, the prompt counted once. CANDIDATES_PER_TOKEN candidates weigh as much
        as a token, so that what waits is bounded in memory too."""
        num_ids = sum(len(response.ids_T) for response in self.responses)
        num_candidates = sum(
            response.candidate_ids_TC.size for response in self.responses if response.candidate_ids_TC is not None
        )
        return len(self.prompt_ids_P) + num_ids + num_candidates // CANDIDATES_PER_TOKEN

    def forward_cost(self, costs: ContextCosts) -> float:
        """Of one forward over the group's tokens, the prompt computed once."""
        num_prompt = len(self.prompt_ids_P)
        return costs.of_span(0, num_prompt) + sum(
            costs.of_span(num_prompt, num_prompt + len(response.ids_T)) for response in self.responses
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResponseColumns:
    """An engine's answer for one response. Row i belongs to the i-th position whose status is OK."""

    status_T: StatusArray
    support_ids_NK: TokenArray
    support_logprobs_NK: LogprobArray
    sampled_logprobs_N: LogprobArray
    log_tail_mass_N: LogprobArray
    entropies_N: LogprobArray | None
    """None from an engine that does not compute them."""
    candidate_logprobs_NC: LogprobArray | None = None
    """Of the response's candidates; None where it names none. A candidate that stands in the support has its logprob
    there, to the bit."""


def num_shared_tokens(a: TokenArray, b: TokenArray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


GroupColumns = tuple[ResponseColumns, ...]
"""One entry per response of a group, in its order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """What the scheduler returns: the columns, and where the time went."""

    columns: GroupColumns
    revision: str
    """Of the weights that scored it."""
    queue_ms: float
    forward_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says about itself; GetInfo repeats it."""

    engine: str
    model: str
    revision: str
    dtype: str
    device: str
    vocabulary_size: int
    max_model_len: int
    max_concurrent_batches: int = 1
    """How many calls of `score` may be in flight at once."""
    applies_temperature: bool = True
    is_batch_invariant_on_request: bool = True
    min_shared_prefix: int | None = None
    """Prompts of one batch that begin with at least this many equal tokens have them computed once. None: never."""
    end_token_ids: tuple[int, ...] = field(default=())
    scores_candidates: bool = False
    """Whether it answers `ResponseToScore.candidate_ids_TC`."""
    computes_entropies: bool = True
    """Whether it answers `ResponseColumns.entropies_N`."""
    max_top_k: int | None = None
    """Largest support that it answers. None: the vocabulary. A student with another tokenizer is answered from up to
    twice as many tokens as it asked for; where this bound cuts them, its last entries may be -inf, the tail has their
    mass."""
    batches_itself: bool = False
    """It takes groups one by one, batches what is in flight by itself, and frees what is cancelled: the scheduler then
    hands over each group alone, as long as `max_tokens_in_flight` has room."""
    max_tokens_in_flight: int = 0
    """Of an engine that batches by itself: tokens that keep it busy; what is beyond waits in the scheduler, which is
    fair."""
    context_costs: ContextCosts = FLAT
    """What its model's tokens cost by their position; groups are charged, batched and divided by them."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Names of the adapters that are loaded, and their revisions."""
    packing: str = ""
    """How the hf engine lays out a batch: packed or sequential."""
    thresholds: Mapping[str, int] = field(default_factory=dict)
    """Tokens beyond which the model computes something else, such as its window, by name; the riskiest first."""
    remedy: str = ""
    """A sentence: which settings to change where its numbers turn out wrong."""

    @property
    def largest_top_k(self) -> int:
        """The largest support that this engine can be asked for."""
        return self.vocabulary_size if self.max_top_k is None else min(self.vocabulary_size, self.max_top_k)

    def revision_of(self, adapter: str) -> str:
        """What an answer says that was scored with this adapter; "" is the teacher as it is."""
        return self.adapters[adapter] if adapter else self.revision
