"""Sends rollouts to the teacher and matches the answers to them. Knows nothing of losses, and of no network."""

# T = tokens of a response, N = scored positions, K = support size

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobDtype, PositionStatus

from preceptor_client.errors import CorruptAnswerError, PreceptorError
from preceptor_client.request import ScoreMask
from preceptor_client.teacher import ScoreOptions
from preceptor_client.train.data.examples import Example
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.refusals import OnRefused, as_refusal
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.selection import selected
from preceptor_client.train.teacher.support import Support, SupportRule
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


class _Masks(TypedDict, total=False):
    score_masks: list[ScoreMask | None]


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
        support: SupportRule,
        min_support: int,
        top_k: int,
        num_student_tokens: int,
        agreement: Agreement,
        vocabulary_size: int,
        stop: StopRequest | None = None,
    ) -> None:
        """`support` chooses the tokens that the loss compares, and positions with fewer than `min_support` are left
        out. The teacher is asked for its `top_k` likeliest tokens, which `config.top_k` need not be, and about as many
        as `num_student_tokens` of the student's. `vocabulary_size` is the student's; `stop` ends the waiting."""
        self._scorer = scorer
        self._config = config
        self._support = support
        self._min_support = min_support
        self._top_k = top_k
        self._num_student_tokens = num_student_tokens
        self._agreement = agreement
        self._vocabulary_size = vocabulary_size
        self._stop = stop or StopRequest()
        self._pending: list[_Pending] = []
        self._num_submitted = 0

    def submit(self, rollouts: Sequence[Episode], *, name: str) -> None:
        """Starts scoring, one group per prompt; the responses to a prompt must come in one call. `name` says in the
        server's log what this is for."""
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[int, Episode]]] = {}
        for place, rollout in enumerate(rollouts, start=self._num_submitted):
            groups.setdefault((rollout.slot, rollout.prompt_ids), []).append((place, rollout))
        self._num_submitted += len(rollouts)
        num_of_slot: Counter[int] = Counter()
        for (slot, _), members in groups.items():
            request_id = f"{name}/{slot}.{num_of_slot[slot]}" if num_of_slot[slot] else f"{name}/{slot}"
            num_of_slot[slot] += 1
            wanted = [(place, rollout) for place, rollout in members if rollout.score_mask_T.any()]
            future = self._submit([rollout for _, rollout in wanted], request_id=request_id) if wanted else None
            self._pending.append(_Pending(members=tuple(members), future=future))

    def _submit(self, members: Sequence[Episode], *, request_id: str) -> Future[GroupScores]:
        prompt = teacher_prompt(
            members[0].example, prompt_ids=members[0].prompt_ids, is_one_to_one=self._agreement.is_one_to_one
        )
        masks_T = [member.score_mask_T for member in members]
        return self._scorer.submit(
            prompt,
            [member.response_ids for member in members],
            top_k=self._top_k,
            candidate_ids=[member.student.top_ids_TK for member in members] if self._num_student_tokens else None,
            temperature=self._config.temperature,
            teacher=self._config.name,
            adapter=self._config.adapter,
            tokenizer_id=self._agreement.registration.tokenizer_id,
            segmentation=self._agreement.policy,
            paper_token_ids=self._agreement.paper_token_ids,
            logprob_dtype=_LOGPROB_DTYPES[self._config.logprob_dtype],
            batch_invariant=self._config.reproducible,
            request_id=request_id,
            timeout_seconds=self._config.patience_seconds,
            **_masked(masks_T),
        )

    def gather(self, *, on_refused: OnRefused | None = None) -> list[ScoredEpisode]:
        """Waits for everything that was submitted, and returns every rollout once, in the order of submission.

        When a group fails the rest is cancelled and the error raised: a step is scored whole, or not at all. Only a
        group that the teacher refuses for what it holds may be left out: `on_refused` decides; without it, and where it
        raises, InvalidDataError names the example. Raises StopRequestedError when the run is asked to stop.
        """
        pending, self._pending = self._pending, []
        scored: list[tuple[int, ScoredEpisode]] = []
        try:
            for one in pending:
                try:
                    group = self._stop.result_of(one.future) if one.future else None
                except PreceptorError as error:
                    refusal = as_refusal(error, example=one.members[0][1].example)
                    if refusal is None:
                        raise
                    if on_refused is None:
                        raise refusal from error
                    on_refused(refusal)
                else:
                    scored += self._scored(one, group)
        finally:
            _cancel(pending)
        return [one for _, one in sorted(scored, key=lambda placed: placed[0])]

    def _scored(self, one: _Pending, group: GroupScores | None) -> list[tuple[int, ScoredEpisode]]:
        """The episodes of a group, each with its place in the order of submission."""
        answers = iter(group.responses if group else ())
        num_answers, num_wanted = len(group.responses) if group else 0, one.num_wanted
        if num_answers != num_wanted:
            raise CorruptAnswerError(f"{num_answers} answers came back for {num_wanted} responses")
        scored: list[tuple[int, ScoredEpisode]] = []
        for place, member in one.members:
            is_wanted = member.score_mask_T.any()
            scores = next(answers) if is_wanted else _nothing_scored(member, top_k=self._top_k)
            self._check(member, scores)
            whole = ScoredEpisode(
                episode=member,
                scores=scores,
                revision=group.revision if group else "",
                teacher=group.teacher if group else "",
                teacher_prompt_ids=group.prompt_ids if group else None,
                support=self._support_of(member, scores),
            )
            scored.append((place, _with_a_choice(whole, min_support=self._min_support)))
        return scored

    def _support_of(self, member: Episode, scores: ResponseScores) -> Support:
        sampled_ids_N = np.asarray(member.response_ids, np.int64)[scores.positions_N]
        return selected(self._support, scores, sampled_ids_N=sampled_ids_N, vocabulary_size=self._vocabulary_size)

    def cancel(self) -> None:
        """Gives up what is in flight, after a failure elsewhere."""
        pending, self._pending = self._pending, []
        _cancel(pending)

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pending:
    """A group on its way."""

    members: tuple[tuple[int, Episode], ...]
    """With their places in the order of submission."""
    future: Future[GroupScores] | None
    """None where no token of the group is to be scored, so that nothing was asked."""

    @property
    def num_wanted(self) -> int:
        return sum(bool(member.score_mask_T.any()) for _, member in self.members)


def _cancel(pending: Sequence[_Pending]) -> None:
    for one in pending:
        if one.future:
            one.future.cancel()


def _masked(masks_T: Sequence[npt.NDArray[np.bool_]]) -> _Masks:
    """Score masks, where not every token is to be scored; a request that scores all of them says nothing of it."""
    if all(mask_T.all() for mask_T in masks_T):
        return {}
    return {"score_masks": [mask_T.tolist() for mask_T in masks_T]}


def _nothing_scored(member: Episode, *, top_k: int) -> ResponseScores:
    """What a teacher would answer about an episode without a token to score."""
    nothing_N = np.zeros(0, np.float32)
    return ResponseScores(
        status_T=np.full(len(member.response_ids), PositionStatus.EXCLUDED, np.uint8),
        positions_N=np.zeros(0, np.int64),
        support_ids_NK=np.zeros((0, top_k), np.int64),
        support_logprobs_NK=np.zeros((0, top_k), np.float32),
        sampled_logprobs_N=nothing_N,
        log_tail_mass_N=nothing_N,
        entropies_N=nothing_N,
        candidate_ids_NC=np.zeros((0, 1), np.int64),
        candidate_logprobs_NC=np.zeros((0, 1), np.float32),
    )


def _with_a_choice(one: ScoredEpisode, *, min_support: int) -> ScoredEpisode:
    """Drops the rows with too few tokens in their support. Nothing after this looks for them again."""
    scores = one.scores
    has_choice_N = one.support.sizes_N >= min_support
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
    return replace(
        one, scores=kept, support=one.support.rows(has_choice_N), num_single_support=int((~has_choice_N).sum())
    )
