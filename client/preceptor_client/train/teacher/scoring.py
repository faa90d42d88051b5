"""Sends rollouts to the teacher and matches the answers to them. Knows nothing of losses, and of no network."""

# K = support size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import groupby
from typing import Protocol, Self, Unpack

import numpy as np
from preceptor.wire import LogprobDtype

from preceptor_client.errors import CorruptAnswerError, PreceptorError
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.data.examples import Example
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.support import support_of
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.refusals import OnRefused, as_refusal
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.types import (
    Chat,
    GroupScores,
    Prompt,
    Registration,
    ResponseScores,
    ServerInfo,
    StudentIds,
    Text,
)

_LOGPROB_DTYPES = {"f16": LogprobDtype.F16, "f32": LogprobDtype.F32}


class Scorer(Protocol):
    """A teacher: the part of BlockingTeacherClient that the trainer uses."""

    def info(self) -> ServerInfo:
        """What the server hosts, and its limits."""

    def register_tokenizer(
        self,
        tokenizer_json: str,
        *,
        chat_template: str | None = None,
        teacher: str = "",
        end_token_ids: Sequence[int] = (),
        teacher_end_token_ids: Sequence[int] = (),
        special_pairs: Mapping[str, str] = {},
        vocabulary_size: int = 0,
    ) -> Registration:
        """Hands the student's tokenizer to the server; says how it aligns with the teacher's."""

    def submit(
        self, prompt: Prompt, responses: Sequence[Sequence[int]], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        """Starts a score and returns at once."""


class Scoring:
    """The groups of one step: submitted as they are written, gathered once, in order."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        config: TeacherConfig,
        objective: ObjectiveConfig,
        agreement: Agreement,
        vocabulary_size: int,
        stop: StopRequest | None = None,
    ) -> None:
        """`vocabulary_size` is the student's; `stop` ends the waiting."""
        self._scorer = scorer
        self._config = config
        self._objective = objective
        self._agreement = agreement
        self._vocabulary_size = vocabulary_size
        self._stop = stop or StopRequest()
        num_common = min(vocabulary_size, agreement.teacher.vocabulary_size)
        self._top_k = num_common if objective.kind == "full_vocabulary" else config.top_k
        self._pending: list[tuple[list[Episode], Future[GroupScores]]] = []

    @classmethod
    def of_run(
        cls,
        scorer: Scorer,
        *,
        config: RunConfig,
        agreement: Agreement,
        vocabulary_size: int,
        stop: StopRequest | None = None,
    ) -> Self:
        """As a run's settings say; `vocabulary_size` is the student's."""
        return cls(
            scorer,
            config=config.teacher,
            objective=config.objective,
            agreement=agreement,
            vocabulary_size=vocabulary_size,
            stop=stop,
        )

    def submit(self, rollouts: Sequence[Episode], *, name: str) -> None:
        """Starts scoring, one group per prompt; the responses to a prompt must come in one call, side by side. `name`
        says in the server's log what this is for."""
        for slot, group in groupby(rollouts, key=lambda rollout: rollout.slot):
            members = list(group)
            future = self._scorer.submit(
                teacher_prompt(
                    members[0].example,
                    prompt_ids=members[0].prompt_ids,
                    is_one_to_one=self._agreement.is_one_to_one,
                ),
                [member.response_ids for member in members],
                top_k=self._top_k,
                candidate_ids=[member.student.top_ids_TK for member in members]
                if self._objective.needs_student_tokens
                else None,
                temperature=self._config.temperature,
                teacher=self._config.name,
                adapter=self._config.adapter,
                tokenizer_id=self._agreement.registration.tokenizer_id,
                segmentation=self._agreement.policy,
                paper_token_ids=self._agreement.paper_token_ids,
                logprob_dtype=_LOGPROB_DTYPES[self._config.logprob_dtype],
                batch_invariant=self._config.reproducible,
                request_id=f"{name}/{slot}",
                timeout_seconds=self._config.patience_seconds,
            )
            self._pending.append((members, future))

    def gather(self, *, on_refused: OnRefused | None = None) -> list[ScoredEpisode]:
        """Waits for everything that was submitted, and returns every rollout once, in the order of submission.

        When a group fails the rest is cancelled and the error raised: a step is scored whole, or not at all. Only a
        group that the teacher refuses for what it holds may be left out: `on_refused` decides; without it, and where it
        raises, InvalidDataError names the example. Raises StopRequestedError when the run is asked to stop.
        """
        pending, self._pending = self._pending, []
        scored: list[ScoredEpisode] = []
        try:
            for members, future in pending:
                try:
                    group = self._stop.result_of(future)
                except PreceptorError as error:
                    refusal = as_refusal(error, example=members[0].example)
                    if refusal is None:
                        raise
                    if on_refused is None:
                        raise refusal from error
                    on_refused(refusal)
                else:
                    scored += self._scored(members, group)
        finally:
            for _, future in pending:
                future.cancel()
        return scored

    def _scored(self, members: Sequence[Episode], group: GroupScores) -> list[ScoredEpisode]:
        if len(group.responses) != len(members):
            raise CorruptAnswerError(f"{len(group.responses)} answers came back for {len(members)} responses")
        scored: list[ScoredEpisode] = []
        for member, scores in zip(members, group.responses, strict=True):
            self._check(member, scores)
            whole = ScoredEpisode(
                episode=member,
                scores=scores,
                revision=group.revision,
                teacher=group.teacher,
                teacher_prompt_ids=group.prompt_ids,
            )
            scored.append(_with_a_choice(whole, config=self._objective))
        return scored

    def cancel(self) -> None:
        """Gives up what is in flight, after a failure elsewhere."""
        pending, self._pending = self._pending, []
        for _, future in pending:
            future.cancel()

    def _check(self, rollout: Episode, scores: ResponseScores) -> None:
        """What the client cannot know: the student's own vocabulary, and the K that this run asked for."""
        expected = (len(scores.positions_N), self._top_k)
        if scores.support_ids_NK.shape != expected or len(scores.status_T) != len(rollout.response_ids):
            raise CorruptAnswerError(f"the support has shape {scores.support_ids_NK.shape}, not {expected}")
        if scores.support_ids_NK.size and int(np.max(scores.support_ids_NK)) >= self._vocabulary_size:
            raise CorruptAnswerError(f"a support id is outside the student's vocabulary of {self._vocabulary_size}")


def teacher_prompt(example: Example, *, prompt_ids: Sequence[int], is_one_to_one: bool = True) -> Prompt:
    """What the teacher reads: the example's own prompt for it, else exactly the ids that the student saw; where ids do
    not correspond one to one, the text or conversation behind those ids, through the teacher's tokenizer and template.
    """
    prompt = example.teacher_prompt
    if prompt is None:
        if is_one_to_one:
            return StudentIds(prompt_ids)
        prompt = example.prompt
    return Text(prompt) if isinstance(prompt, str) else Chat(prompt)


def _with_a_choice(one: ScoredEpisode, *, config: ObjectiveConfig) -> ScoredEpisode:
    """Drops the rows with too few tokens in their support. Nothing after this looks for them again."""
    scores = one.scores
    support = support_of(scores, sampled_ids_N=one.sampled_ids_N, config=config)
    has_choice_N = support.sizes_N >= config.min_support
    if has_choice_N.all():
        return one
    rows_N, ids_NC, logprobs_NC = scores.teacher_rows_N, scores.candidate_ids_NC, scores.candidate_logprobs_NC
    entropies_N = scores.entropies_N
    kept = replace(
        scores,
        positions_N=scores.positions_N[has_choice_N],
        support_ids_NK=scores.support_ids_NK[has_choice_N],
        support_logprobs_NK=scores.support_logprobs_NK[has_choice_N],
        sampled_logprobs_N=scores.sampled_logprobs_N[has_choice_N],
        log_tail_mass_N=scores.log_tail_mass_N[has_choice_N],
        entropies_N=None if entropies_N is None else entropies_N[has_choice_N],
        teacher_rows_N=None if rows_N is None else rows_N[has_choice_N],
        candidate_ids_NC=None if ids_NC is None else ids_NC[has_choice_N],
        candidate_logprobs_NC=None if logprobs_NC is None else logprobs_NC[has_choice_N],
    )
    return replace(one, scores=kept, num_single_support=int((~has_choice_N).sum()))
