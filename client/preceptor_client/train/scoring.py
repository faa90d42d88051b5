"""Sends rollouts to the teacher and matches the answers to them. Knows nothing of losses, and of no network."""

# K = support size

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, Unpack

import numpy as np
from preceptor.wire import LogprobDtype

from preceptor_client.errors import CorruptAnswerError
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.config import TeacherConfig
from preceptor_client.train.data import Example
from preceptor_client.train.rollout import Rollout
from preceptor_client.types import Chat, GroupScores, Prompt, ResponseScores, ServerInfo, StudentIds, Text

_LOGPROB_DTYPES = {"f16": LogprobDtype.F16, "f32": LogprobDtype.F32}


class Scorer(Protocol):
    """A teacher: the part of BlockingTeacherClient that the trainer uses."""

    def info(self) -> ServerInfo:
        """What the server hosts, and its limits."""

    def submit(
        self, prompt: Prompt, responses: Sequence[Sequence[int]], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        """Starts a score and returns at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRollout:
    """What the student wrote, and what the teacher thinks of it."""

    rollout: Rollout
    scores: ResponseScores


class Scoring:
    """The groups of one step: submitted as they are written, gathered once, in order."""

    def __init__(self, scorer: Scorer, *, config: TeacherConfig, tokenizer_id: str, vocabulary_size: int) -> None:
        self._scorer = scorer
        self._config = config
        self._tokenizer_id = tokenizer_id
        self._vocabulary_size = vocabulary_size
        self._pending: list[tuple[list[Rollout], Future[GroupScores]]] = []

    def submit(self, rollouts: Sequence[Rollout], *, step: int) -> None:
        """Starts scoring, one group per prompt; the responses to a prompt must come in one call, side by side."""
        for slot, group in groupby(rollouts, key=lambda rollout: rollout.slot):
            members = list(group)
            future = self._scorer.submit(
                teacher_prompt(members[0].example, prompt_ids=members[0].prompt_ids),
                [member.response_ids for member in members],
                top_k=self._config.top_k,
                temperature=self._config.temperature,
                teacher=self._config.name,
                tokenizer_id=self._tokenizer_id,
                logprob_dtype=_LOGPROB_DTYPES[self._config.logprob_dtype],
                batch_invariant=self._config.reproducible,
                request_id=f"step-{step}/{slot}",
                timeout_seconds=self._config.patience_seconds,
            )
            self._pending.append((members, future))

    def gather(self) -> list[ScoredRollout]:
        """Waits for everything that was submitted, and returns every rollout once, in the order of submission.

        When a group fails the rest is cancelled and the error raised: a step is scored whole, or not at all.
        """
        pending, self._pending = self._pending, []
        scored: list[ScoredRollout] = []
        try:
            for members, future in pending:
                answers = future.result().responses
                if len(answers) != len(members):
                    raise CorruptAnswerError(f"{len(answers)} answers came back for {len(members)} responses")
                for member, scores in zip(members, answers, strict=True):
                    self._check(member, scores)
                    scored.append(ScoredRollout(rollout=member, scores=scores))
        finally:
            for _, future in pending:
                future.cancel()
        return scored

    def cancel(self) -> None:
        """Gives up what is in flight, after a failure elsewhere."""
        pending, self._pending = self._pending, []
        for _, future in pending:
            future.cancel()

    def _check(self, rollout: Rollout, scores: ResponseScores) -> None:
        """What the client cannot know: the student's own vocabulary, and the K that this run asked for."""
        expected = (len(scores.positions_N), self._config.top_k)
        if scores.support_ids_NK.shape != expected or len(scores.status_T) != len(rollout.response_ids):
            raise CorruptAnswerError(f"the support has shape {scores.support_ids_NK.shape}, not {expected}")
        if scores.support_ids_NK.size and int(np.max(scores.support_ids_NK)) >= self._vocabulary_size:
            raise CorruptAnswerError(f"a support id is outside the student's vocabulary of {self._vocabulary_size}")


def teacher_prompt(example: Example, *, prompt_ids: Sequence[int]) -> Prompt:
    """What the teacher reads: the example's own prompt for it, else exactly the ids that the student saw."""
    if example.teacher_prompt is None:
        return StudentIds(prompt_ids)
    if isinstance(example.teacher_prompt, str):
        return Text(example.teacher_prompt)
    return Chat(example.teacher_prompt)
