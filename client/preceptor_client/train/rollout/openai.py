"""Engine "openai": the teacher writes, asked over OpenAI's API, and the student is trained on its text.

The teacher reads an example's `teacher_prompt`, or else its prompt. Its text is tokenized for the student. This is
off-policy: to choose this engine is the explicit wish to train on text that the student did not write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

from preceptor.json_values import plain_object
from pydantic import Field, JsonValue

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError, InvalidPartError
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.rollout.calls import Call, call_all
from preceptor_client.train.rollout.chat_server import ChatServer, Completion
from preceptor_client.train.rollout.choosing import Choice, Choose
from preceptor_client.train.rollout.drafts import Draft, DraftSegment, episodes_of, text_ids
from preceptor_client.train.rollout.episode import Episode, FinishReason
from preceptor_client.train.rollout.rewards import REWARD, WeightedReward

if TYPE_CHECKING:
    from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutRequest

_GRACE_SECONDS = 5.0
"""A question ends by its own deadline; this much later it is abandoned."""
_MATCH = PartConfig(kind="match")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One candidate that the teacher is to write."""

    example: Example
    slot: int
    prompt_ids: tuple[int, ...]
    candidate: int

    @property
    def where(self) -> str:
        return f"{self.example.name} (candidate {self.candidate})"


class TeacherWrites:
    """Lets a teacher write several candidates for each prompt, and keeps some of them."""

    def __init__(
        self,
        base_url: str,
        model: str,
        temperature: Annotated[float, Field(ge=0)] = 0.7,
        top_p: Annotated[float, Field(gt=0, le=1)] = 0.95,
        num_candidates: Annotated[int, Field(ge=1)] = 2,
        choose: Choose = "all",
        reward: PartConfig = _MATCH,
        min_reward: float | None = None,
        top_k: Annotated[int, Field(ge=1)] = 16,
        max_concurrency: Annotated[int, Field(ge=1)] = 16,
        timeout_seconds: Annotated[float, Field(gt=0)] = 120.0,
        api_key_variable: str = "",
        extra_body: dict[str, JsonValue] | None = None,
    ) -> None:
        """`choose`: "all" candidates are kept, whatever rollout.responses_per_prompt is; or so many as that is: those
        with the "best" `reward`, or, among equal rewards, those with "most_overlap" with the student's `top_k`
        likeliest tokens (BRTS, arXiv 2605.09725). None below `min_reward` is kept. `extra_body` goes into each
        request, such as {"chat_template_kwargs": {...}} for vLLM."""
        self._server = ChatServer(
            base_url, model=model, timeout_seconds=timeout_seconds, api_key_variable=api_key_variable
        )
        self._sampling: dict[str, JsonValue] = {"temperature": temperature, "top_p": top_p, **(extra_body or {})}
        self._num_candidates = num_candidates
        self._max_concurrency = max_concurrency
        self._timeout_seconds = timeout_seconds
        part = REWARD.make(reward.kind, reward.options, key="rollout.engine_options.reward.kind")
        self._choice = Choice(
            choose=choose,
            reward=WeightedReward(name=reward.kind, reward=part),
            min_reward=min_reward,
            top_k=top_k,
        )

    @property
    def num_top_ids(self) -> int:
        """Likeliest tokens of the student that this engine needs in `Policy.view`."""
        return self._choice.top_k if self._choice.choose == "most_overlap" else 0

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        """As `RolloutEngine.run`. A server that cannot be reached raises TeacherUnavailableError; one question that it
        refuses, or does not answer in time, costs its candidate."""
        if request.make_environment is not None:
            raise InvalidPartError(
                "rollout.engine='openai' writes one response to each prompt, and environment is set: remove it, or "
                "take another engine"
            )
        wanted = request.config.responses_per_prompt
        if self._choice.choose != "all" and wanted > self._num_candidates:
            raise InvalidPartError(
                f"rollout.engine_options.num_candidates={self._num_candidates} is below rollout.responses_per_prompt="
                f"{wanted}, and of the candidates so many are to be kept: raise the one or lower the other"
            )
        prompts_per_batch = max(1, request.config.batch_size // self._num_candidates)
        for first in range(0, len(request.examples), prompts_per_batch):
            slots = range(first, min(first + prompts_per_batch, len(request.examples)))
            asked = list(self._asked(slots, request=request, policy=policy, on_bad=on_bad))
            candidates = self._written(asked, request=request, policy=policy, on_bad=on_bad)
            episodes = self._choice.of(candidates, num=wanted, decode=policy.decode, on_bad=on_bad)
            if episodes:
                yield episodes

    def _asked(
        self, places: Sequence[int], *, request: RolloutRequest, policy: Policy, on_bad: OnBad
    ) -> Iterator[_Asked]:
        for place in places:
            example = request.examples[place]
            try:
                prompt_ids = policy.encode(example.prompt, example=example)
            except InvalidDataError as error:
                on_bad(error)
                continue
            for candidate in range(self._num_candidates):
                yield _Asked(
                    example=example, slot=request.first_slot + place, prompt_ids=prompt_ids, candidate=candidate
                )

    def _written(
        self, asked: Sequence[_Asked], *, request: RolloutRequest, policy: Policy, on_bad: OnBad
    ) -> list[Episode]:
        calls: list[Call[Completion]] = [partial(self._complete, one, request=request) for one in asked]
        completions = call_all(
            calls,
            timeout_seconds=self._timeout_seconds + _GRACE_SECONDS,
            max_concurrency=self._max_concurrency,
            stop=request.stop,
        )
        drafts: list[Draft] = []
        for one, outcome in zip(asked, completions, strict=True):
            try:
                drafts.append(_draft(one, outcome, request=request, policy=policy))
            except InvalidEpisodeError as error:
                on_bad(error)
        return episodes_of(drafts, policy=policy, max_new_tokens=request.config.max_new_tokens, on_bad=on_bad)

    async def _complete(self, one: _Asked, *, request: RolloutRequest) -> Completion:
        prompt = one.example.prompt if one.example.teacher_prompt is None else one.example.teacher_prompt
        options: dict[str, JsonValue] = {
            **self._sampling,
            "max_tokens": request.config.max_new_tokens,
            "seed": _seed(request, one),
        }
        if not isinstance(prompt, str):
            options |= _template_options(one.example, given=self._sampling)
        return await self._server.complete(prompt, options=options)


def _template_options(example: Example, *, given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What vLLM hands the teacher's chat template. The tools are told to the teacher, and its calls stay text."""
    options: dict[str, JsonValue] = {}
    if example.tools:
        options |= {"tools": [json.loads(tool) for tool in example.tools], "tool_choice": "none"}
    if example.teacher_chat_template_kwargs:
        variables = given.get("chat_template_kwargs")
        own = dict(variables) if isinstance(variables, dict) else {}
        theirs = cast("dict[str, JsonValue]", plain_object(example.teacher_chat_template_kwargs))
        options["chat_template_kwargs"] = {**own, **theirs}
    return options


def _seed(request: RolloutRequest, one: _Asked) -> int:
    """Unrelated to those of other candidates; vLLM takes 63 bits, others 31."""
    text = f"preceptor teacher text {request.seed}/{request.step}/{one.slot}/{one.candidate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1


def _draft(one: _Asked, outcome: Completion | BaseException, *, request: RolloutRequest, policy: Policy) -> Draft:
    """Raises InvalidEpisodeError where this candidate is at fault, and other errors as they are."""
    if isinstance(outcome, InvalidEpisodeError | TimeoutError):
        raise InvalidEpisodeError(f"the teacher's text: {outcome}", where=one.where) from outcome
    if isinstance(outcome, InvalidPartError):
        raise InvalidPartError(f"rollout.engine_options: {outcome}") from outcome
    if isinstance(outcome, TeacherUnavailableError):
        raise TeacherUnavailableError(f"rollout.engine_options.base_url: {outcome}") from outcome
    if isinstance(outcome, BaseException):
        raise outcome
    if outcome.finish_reason not in ("stop", "length"):
        raise InvalidEpisodeError(
            f"the teacher's text: finish_reason is {outcome.finish_reason!r}, neither stop nor length", where=one.where
        )
    ids, reason = _students_ids(outcome, policy=policy)
    return Draft(
        where=one.where,
        example=one.example,
        slot=one.slot,
        sample=one.candidate,
        prompt_ids=one.prompt_ids,
        segments=(DraftSegment(ids=ids),),
        finish_reason=reason,
        policy_version=max(request.step - 1, 0),
    )


def _students_ids(completion: Completion, *, policy: Policy) -> tuple[tuple[int, ...], FinishReason]:
    """Up to the first end token, which a text that the teacher ended gets if it has none."""
    ids = text_ids(policy, completion.text)
    for place, token in enumerate(ids):
        if token in policy.end_token_ids:
            return ids[: place + 1], "stop"
    if completion.finish_reason == "stop":
        return (*ids, policy.end_token_ids[0]), "stop"
    return ids, "length"
