"""What groups cost, in computed tokens: the one model by which they are charged, batched and divided.

One unit is a token without context of which a support of 32 is wanted; with its context a token costs more, as the
engine says (EngineInfo.context_costs). A prompt is counted once, and a prefix that the engine computes once for several
groups, or finds in its cache, only for the first. Beyond that a scored position costs more for a larger support and for
candidates, since those are selected and copied apart from the model. The constants are those of SmolLM2-135M on one
core (python -m bench.scheduling_costs prints them); under a larger model, whose tokens cost more, the same extras weigh
less: a large support is charged too much rather than too little.
"""

# P = prompt tokens

from __future__ import annotations

from collections import OrderedDict, deque

from preceptor.wire import TokenArray

from preceptor_server.types import ScoreGroup, num_shared_tokens

SUPPORT_INCLUDED = 32
"""Support entries per position that a token's cost includes."""
TOKENS_PER_SUPPORT_ENTRY = 0.0003
"""Of each further support entry of a scored position."""
TOKENS_PER_CANDIDATE = 0.0001
"""Of each candidate of a token."""
_MAX_PROMPTS = 256
"""Beginnings of prompts that are remembered."""
_MAX_PROMPT_TOKENS = 4_000_000
"""Of all that are remembered: 32 MB. The latest is remembered however long it is."""
_MAX_COMPARED = 4
"""Prompts of one beginning that a new one is compared with: the latest."""


def cost_beside_tokens(group: ScoreGroup) -> float:
    """Of the group's supports and candidates; its tokens cost `group.forward_cost`."""
    return _cost_of_supports(group) + _cost_of_candidates(group)


def _cost_of_supports(group: ScoreGroup) -> float:
    more = max(0, group.top_k - SUPPORT_INCLUDED)
    if not more:
        return 0.0
    num_rows = sum(int(response.score_mask_T.sum()) for response in group.responses)
    return num_rows * more * TOKENS_PER_SUPPORT_ENTRY


def _cost_of_candidates(group: ScoreGroup) -> float:
    named = (response.candidate_ids_TC for response in group.responses)
    return sum(ids_TC.size for ids_TC in named if ids_TC is not None) * TOKENS_PER_CANDIDATE


def bytes_of(group: ScoreGroup) -> int:
    """That are held while the group waits."""
    own = group.prompt_ids_P.nbytes + sum(
        response.ids_T.nbytes
        + response.score_mask_T.nbytes
        + (0 if response.candidate_ids_TC is None else response.candidate_ids_TC.nbytes)
        for response in group.responses
    )
    return own + group.num_bytes_besides


class SharedPrefixes:
    """Prompts that the engine computes, or has computed lately: what of a further one it need not compute again."""

    def __init__(self, *, min_shared: int | None) -> None:
        """`min_shared` as in EngineInfo.min_shared_prefix."""
        self._min_shared = min_shared
        self._by_beginning: OrderedDict[tuple[str, bytes], deque[TokenArray]] = OrderedDict()
        self.num_tokens = 0
        """Of the prompts that are remembered."""

    def num_shared(self, group: ScoreGroup) -> int:
        """Tokens of its prompt that need not be computed."""
        if self._min_shared is None:
            return 0
        alike = self._by_beginning.get(self._beginning(group), ())
        shared = max((num_shared_tokens(prompt_P, group.prompt_ids_P) for prompt_P in alike), default=0)
        return shared if shared >= self._min_shared else 0

    def add(self, group: ScoreGroup) -> None:
        """It is computed."""
        if self._min_shared is None or len(group.prompt_ids_P) < self._min_shared:
            return
        beginning = self._beginning(group)
        alike = self._by_beginning.setdefault(beginning, deque())
        alike.append(group.prompt_ids_P)
        self.num_tokens += len(group.prompt_ids_P)
        self._by_beginning.move_to_end(beginning)
        if len(alike) > _MAX_COMPARED:
            self.num_tokens -= len(alike.popleft())
        while len(self._by_beginning) > _MAX_PROMPTS or self.num_tokens > _MAX_PROMPT_TOKENS:
            if not self._forget_one():
                return

    def _forget_one(self) -> bool:
        """The oldest prompt of the beginning that came longest ago; False where only the latest is left."""
        beginning, alike = next(iter(self._by_beginning.items()))
        if len(self._by_beginning) == len(alike) == 1:
            return False
        self.num_tokens -= len(alike.popleft())
        if not alike:
            del self._by_beginning[beginning]
        return True

    def _beginning(self, group: ScoreGroup) -> tuple[str, bytes]:
        return group.adapter, group.prompt_ids_P[: self._min_shared].tobytes()
