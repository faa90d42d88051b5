"""Sends episodes to one teacher and matches the answers to them. Knows nothing of supports or losses."""

# T = tokens of a response, N = scored positions, K = support size, C = candidates per position

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobDtype, PositionStatus, TokenArray

from preceptor_client.errors import CorruptAnswerError, GroupFailedError, PreceptorError
from preceptor_client.request import ScoreMask
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.failed_groups import FailedGroup, GroupKey, OnFailed, group_of
from preceptor_client.train.teacher.prompt_source import PromptMaker, PromptSource
from preceptor_client.train.teacher.refusals import OnRefused, as_refusal
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.types import GroupScores, ResponseScores

_LOGPROB_DTYPES = {"f16": LogprobDtype.F16, "f32": LogprobDtype.F32}


class _Masks(TypedDict, total=False):
    score_masks: list[ScoreMask | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What one teacher said of one episode."""

    episode: Episode
    scores: ResponseScores
    teacher: str = ""
    """Its name on its server."""
    revision: str = ""
    prompt_ids: TokenArray | None = None
    """The prompt as it read it, in its own ids."""


class Questions:
    """The groups of one step: submitted as they are written, gathered once, in order."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        config: TeacherConfig,
        agreement: Agreement,
        top_k: int,
        num_student_tokens: int,
        vocabulary_size: int,
        name: str = "",
        prompt_maker: PromptMaker | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`name` is the teacher's in the settings. It is asked for its `top_k` likeliest tokens, which `config.top_k`
        need not be, and about as many as `num_student_tokens` of the student's. `vocabulary_size` is the student's;
        `decode` gives the text of its ids, for `prompt_maker`; `stop` ends the waiting."""
        self._scorer = scorer
        self._name = name
        self._config = config
        self._agreement = agreement
        self._top_k = top_k
        self._num_student_tokens = num_student_tokens
        self._vocabulary_size = vocabulary_size
        self._prompts = PromptSource(
            is_one_to_one=agreement.is_one_to_one,
            teacher=name,
            maker=prompt_maker,
            decode=decode,
            chat_template_kwargs=config.chat_template_kwargs,
        )
        self._stop = stop or StopRequest()
        self._pending: list[_Pending] = []
        self._num_submitted = 0

    def submit(
        self, episodes: Sequence[Episode], *, name: str, candidate_ids_TC: Sequence[TokenArray] | None = None
    ) -> None:
        """Starts scoring, one group per prompt; the episodes of a prompt must come in one call. `name` says in the
        server's log what this is for; `candidate_ids_TC` are ids to ask about in place of the student's own."""
        groups: dict[GroupKey, list[_Member]] = {}
        for index, episode in enumerate(episodes):
            member = _Member(
                place=self._num_submitted + index,
                episode=episode,
                candidate_ids_TC=candidate_ids_TC[index] if candidate_ids_TC else None,
            )
            groups.setdefault(group_of(episode), []).append(member)
        self._num_submitted += len(episodes)
        num_of_slot: Counter[int] = Counter()
        for (slot, _), members in groups.items():
            request_id = f"{name}/{slot}.{num_of_slot[slot]}" if num_of_slot[slot] else f"{name}/{slot}"
            num_of_slot[slot] += 1
            wanted = [member for member in members if member.is_wanted]
            self._pending.append(_Pending(members=tuple(members), future=self._asked(wanted, request_id=request_id)))

    def _asked(self, members: Sequence[_Member], *, request_id: str) -> Future[GroupScores] | None:
        """None where nothing is to be scored."""
        if not members:
            return None
        try:
            prompt = self._prompts.before([member.episode for member in members])
        except InvalidDataError as error:
            failed: Future[GroupScores] = Future()
            failed.set_exception(error)
            return failed
        return self._scorer.submit(
            prompt,
            [member.episode.response_ids for member in members],
            top_k=self._top_k,
            candidate_ids=self._candidates(members),
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
            **_masked([member.episode.score_mask_T for member in members]),
        )

    def _candidates(self, members: Sequence[_Member]) -> list[TokenArray | None] | None:
        if any(member.candidate_ids_TC is not None for member in members):
            return [member.candidate_ids_TC for member in members]
        if not self._num_student_tokens:
            return None
        tops = [member.episode.student.top_ids_TK for member in members]
        # An engine may have kept more of them for itself.
        return [None if ids_TK is None else ids_TK[:, : self._num_student_tokens] for ids_TK in tops]

    def gather(self, *, on_refused: OnRefused | None = None, on_failed: OnFailed | None = None) -> list[Answer]:
        """Waits for everything that was submitted, and returns an answer for every episode, in the order of submission.

        When a group fails the rest is cancelled and the error raised: a step is scored whole, or not at all. Two kinds
        of groups may be left out. A group that the teacher refuses for what it holds: `on_refused` decides; without it,
        and where it raises, InvalidDataError names the example. And a group that the teacher fails on, which
        `on_failed` is told of; without it, GroupFailedError is raised. Raises StopRequestedError when the run is asked
        to stop.
        """
        pending, self._pending, self._num_submitted = self._pending, [], 0
        answers: list[tuple[int, Answer]] = []
        try:
            for one in pending:
                try:
                    group = self._stop.result_of(one.future) if one.future else None
                except PreceptorError as error:
                    self._leave_out(one, error, on_refused=on_refused, on_failed=on_failed)
                else:
                    answers += self._answers(one, group)
        finally:
            _cancel(pending)
        return [answer for _, answer in sorted(answers, key=lambda placed: placed[0])]

    def _leave_out(
        self, one: _Pending, error: PreceptorError, *, on_refused: OnRefused | None, on_failed: OnFailed | None
    ) -> None:
        """Raises the error where it is not this group's alone, or nobody takes it."""
        first = one.members[0].episode
        if isinstance(error, GroupFailedError) and on_failed is not None:
            teacher = self._name or self._config.name
            on_failed(FailedGroup(key=group_of(first), example=first.example.name, teacher=teacher, error=error))
            return
        refusal = as_refusal(error, example=first.example)
        if refusal is None:
            raise error
        if on_refused is None:
            raise refusal from error
        on_refused(refusal)

    def cancel(self) -> None:
        """Gives up what is in flight, after a failure elsewhere."""
        pending, self._pending, self._num_submitted = self._pending, [], 0
        _cancel(pending)

    def _answers(self, one: _Pending, group: GroupScores | None) -> list[tuple[int, Answer]]:
        """Those of a group, each with its place in the order of submission."""
        responses = iter(group.responses if group else ())
        num_answers = len(group.responses) if group else 0
        num_wanted = sum(member.is_wanted for member in one.members)
        if num_answers != num_wanted:
            raise CorruptAnswerError(f"{num_answers} answers came back for {num_wanted} responses")
        answers: list[tuple[int, Answer]] = []
        for member in one.members:
            scores = next(responses) if member.is_wanted else _nothing_scored(member.episode, top_k=self._top_k)
            self._check(member.episode, scores)
            answer = Answer(
                episode=member.episode,
                scores=scores,
                revision=group.revision if group else "",
                teacher=group.teacher if group else "",
                prompt_ids=group.prompt_ids if group else None,
            )
            answers.append((member.place, answer))
        return answers

    def _check(self, episode: Episode, scores: ResponseScores) -> None:
        """What the client cannot know: the student's own vocabulary, and the K that this run asked for."""
        expected = (len(scores.positions_N), self._top_k)
        if scores.support_ids_NK.shape != expected or len(scores.status_T) != len(episode.response_ids):
            raise CorruptAnswerError(f"the support has shape {scores.support_ids_NK.shape}, not {expected}")
        if scores.support_ids_NK.size and int(np.max(scores.support_ids_NK)) >= self._vocabulary_size:
            raise CorruptAnswerError(f"a support id is outside the student's vocabulary of {self._vocabulary_size}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Member:
    """An episode of a group."""

    place: int
    """In the order of submission."""
    episode: Episode
    candidate_ids_TC: TokenArray | None

    @property
    def is_wanted(self) -> bool:
        """Whether a token of it is to be scored."""
        return bool(self.episode.score_mask_T.any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pending:
    """A group on its way."""

    members: tuple[_Member, ...]
    future: Future[GroupScores] | None
    """None where no token of the group is to be scored, so that nothing was asked."""


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
