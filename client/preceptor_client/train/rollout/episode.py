"""One episode: a prompt, and what the student and its environment wrote after it. Knows no teacher and no loss."""

# T = tokens of the response, K = support size

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
import numpy.typing as npt

from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidEpisodeError
from preceptor_client.train.student.view import StudentView, joined_views, unwritten_view
from preceptor_client.types import ChatMessage

FinishReason = Literal["stop", "length", "turns"]
"""The student ended, or its environment did; a limit on tokens cut it; a limit on turns did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of one author."""

    ids: tuple[int, ...]
    is_policy: bool
    """Whether the student wrote them. What an environment, a tool or another model wrote is context, never a target."""
    is_masked: bool = False
    """Whether tokens of the student are left out of the loss all the same."""
    student: StudentView | None = field(default=None, compare=False)
    """The student's distribution, for its own tokens only."""

    def __post_init__(self) -> None:
        if self.is_policy != (self.student is not None):
            raise InvalidEpisodeError("a segment has the student's logprobs if and only if the student wrote it")
        if self.student is not None and len(self.student.logprobs_T) != len(self.ids):
            raise InvalidEpisodeError(
                f"a segment of {len(self.ids)} tokens has logprobs for {len(self.student.logprobs_T)}"
            )


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One rollout. A single turn is one segment, which the student wrote."""

    example: Example
    slot: int
    """Which prompt of the step this answers; the episodes of one prompt share it."""
    sample: int = 0
    """Which of the episodes of its slot this is."""
    part: int = 0
    """An episode whose history was rendered anew goes on in a further part, with a prompt of its own."""
    prompt_ids: tuple[int, ...]
    """Exactly the ids that the student saw before the first segment."""
    segments: tuple[Segment, ...]
    reward: float | tuple[float | None, ...] | None = None
    """None, one number for the whole, or one per segment. Finite."""
    policy_version: int = 0
    """Optimizer steps that the student had made when it wrote."""
    finish_reason: FinishReason
    messages: tuple[ChatMessage, ...] = ()
    """The conversation that `prompt_ids` renders, where it is not the example's prompt."""
    tools: tuple[str, ...] = ()
    """The tools that `prompt_ids` tell of, as JSON texts, where they are not the example's."""
    info: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Whatever its environment says of it."""

    def __post_init__(self) -> None:
        if not any(segment.ids for segment in self.segments):
            raise InvalidEpisodeError("an episode has at least one token after its prompt", where=self.name)
        rewards = self.reward if isinstance(self.reward, tuple) else (self.reward,)
        if isinstance(self.reward, tuple) and len(self.reward) != len(self.segments):
            raise InvalidEpisodeError(
                f"{len(self.reward)} rewards for {len(self.segments)} segments: give one each, one number, or None",
                where=self.name,
            )
        if not all(reward is None or math.isfinite(reward) for reward in rewards):
            raise InvalidEpisodeError(f"a reward is not finite: {self.reward}", where=self.name)

    @property
    def name(self) -> str:
        """For messages."""
        return episode_name(self.example, self.sample)

    @property
    def task(self) -> str:
        """What its example belongs to."""
        return self.example.task

    @cached_property
    def response_ids(self) -> tuple[int, ...]:
        """All tokens after the prompt, whoever wrote them. Ends with the end token where `finish_reason` is "stop"."""
        return tuple(chain.from_iterable(segment.ids for segment in self.segments))

    @cached_property
    def score_mask_T(self) -> npt.NDArray[np.bool_]:
        """Which tokens are to be scored: the student's own, unless they are masked."""
        is_scored = [segment.is_policy and not segment.is_masked for segment in self.segments]
        return np.repeat(np.array(is_scored, np.bool_), self._lengths)

    @cached_property
    def is_policy_T(self) -> npt.NDArray[np.bool_]:
        """Which tokens the student wrote."""
        return np.repeat(np.array([segment.is_policy for segment in self.segments], np.bool_), self._lengths)

    @cached_property
    def turns_T(self) -> npt.NDArray[np.int64]:
        """The student's turn that each token belongs to, from 0; what follows a turn belongs to it."""
        num_before = np.cumsum([segment.is_policy for segment in self.segments])
        return np.repeat(np.maximum(num_before - 1, 0).astype(np.int64), self._lengths)

    @cached_property
    def student(self) -> StudentView:
        """What the student said at each token; NaN where it did not write."""
        tops = [one.student.top_ids_TK for one in self.segments if one.student and one.student.top_ids_TK is not None]
        num_top_ids = tops[0].shape[1] if tops else None
        return joined_views(
            [one.student or unwritten_view(len(one.ids), num_top_ids=num_top_ids) for one in self.segments]
        )

    @property
    def last_turn_ids(self) -> tuple[int, ...]:
        """What the student wrote in its last turn."""
        return next((one.ids for one in reversed(self.segments) if one.is_policy), ())

    @property
    def num_policy_tokens(self) -> int:
        return int(self.is_policy_T.sum())

    @property
    def total_reward(self) -> float | None:
        """The sum over its segments; None where it has no reward."""
        if not isinstance(self.reward, tuple):
            return self.reward
        given = [reward for reward in self.reward if reward is not None]
        return sum(given) if given else None

    @property
    def _lengths(self) -> list[int]:
        return [len(segment.ids) for segment in self.segments]


def episode_name(example: Example, sample: int) -> str:
    """For messages."""
    return f"{example.name} (episode {sample})"


def single_turn(
    *,
    example: Example,
    slot: int,
    prompt_ids: tuple[int, ...],
    response_ids: tuple[int, ...],
    finish_reason: FinishReason,
    student: StudentView,
    sample: int = 0,
    policy_version: int = 0,
    reward: float | None = None,
) -> Episode:
    """An episode of one segment."""
    return Episode(
        example=example,
        slot=slot,
        sample=sample,
        prompt_ids=prompt_ids,
        segments=(Segment(ids=response_ids, is_policy=True, student=student),),
        finish_reason=finish_reason,
        policy_version=policy_version,
        reward=reward,
    )
