"""Rolls out conversations with environments, in lock step: one turn of every episode of a batch, then the next.

What a batch draws is a function of the policy, the seed, step, batch and turn, and of what the environments say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import CheckedTurn
from preceptor_client.train.errors import InvalidEpisodeError
from preceptor_client.train.rollout.conversation import Conversation, Part, Template
from preceptor_client.train.rollout.draws import draw_seed, slots_of_batches
from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutRequest, Written
from preceptor_client.train.rollout.environments import LiveEnvironment, Opening, Pending, close_all
from preceptor_client.train.rollout.episode import Episode, FinishReason, episode_name

REWRITTEN_AT_TURN = "history_rewritten_at_turn"
"""Key of `Episode.info`: the student's turn, from 0, before which the template rewrote history."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Live:
    """An episode that is going on."""

    example: Example
    slot: int
    sample: int
    environment: LiveEnvironment
    conversation: Conversation | None = None
    tools: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None
    """None until it ends."""
    info: dict[str, object] = field(default_factory=dict)

    @property
    def talk(self) -> Conversation:
        assert self.conversation is not None, "an episode begins before its first turn"
        return self.conversation


def roll_out_turns(request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
    """The parts of the episodes of a batch, ordered by slot, sample and part. An episode whose environment fails is
    given to `on_bad` and left out."""
    for batch, places in enumerate(slots_of_batches(len(request.examples), config=request.config)):
        lives = list(_started(request, places))
        try:
            running = _Batch(request, policy=policy, on_bad=on_bad, number=batch, lives=lives)
            episodes = running.run()
        finally:
            close_all(live.environment for live in lives)
        if episodes:
            yield episodes


def _started(request: RolloutRequest, places: Sequence[int]) -> Iterator[_Live]:
    assert request.make_environment is not None, "conversations are for requests with an environment"
    for number, place in enumerate(places):
        example, sample = request.examples[place], number % request.config.responses_per_prompt
        environment = LiveEnvironment(
            request.make_environment,
            name=episode_name(example, sample),
            timeout_seconds=request.config.environment_timeout_seconds,
            stop=request.stop,
        )
        yield _Live(example=example, slot=request.first_slot + place, sample=sample, environment=environment)


class _Batch:
    """Episodes that go on together. A bad one is told and leaves; the others do not notice."""

    def __init__(
        self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad, number: int, lives: Sequence[_Live]
    ) -> None:
        self._request = request
        self._config = request.config
        self._policy = policy
        self._on_bad = on_bad
        self._number = number
        self._lives = list(lives)
        limit = self._config.max_episode_tokens
        self._max_length = min(limit, policy.max_length) if limit else policy.max_length

    def run(self) -> list[Episode]:
        self._begin()
        for turn in range(self._config.max_turns):
            going = [live for live in self._lives if live.finish_reason is None]
            if not going:
                break
            self._hear([(live, live.environment.step(text)) for live, text in self._write(going, turn=turn)], turn=turn)
        return [episode for live in self._lives for episode in self._episodes(live)]

    def _begin(self) -> None:
        pending = [(live, live.environment.reset(live.example)) for live in self._lives]
        for live, opening in pending:
            try:
                self._open(live, opening.result())
            except InvalidEpisodeError as error:
                self._leave(live, error)

    def _open(self, live: _Live, opening: Opening) -> None:
        live.tools = opening.tools or live.example.tools
        live.conversation = Conversation(
            opening.messages,
            template=Template(
                tokenizer=self._policy.tokenizer,
                num_ids=self._policy.num_ids,
                tools=live.tools,
                kwargs={**self._policy.chat_template_kwargs, **live.example.chat_template_kwargs},
            ),
            end_token_ids=self._policy.end_token_ids,
            on_rewritten_history=self._config.on_rewritten_history,
        )
        if self._room(live) < 1:
            raise InvalidEpisodeError(
                f"its environment begins with {len(live.talk.ids)} tokens, and an episode has at most "
                f"{self._max_length}: shorten what reset() gives, or raise rollout.max_episode_tokens (the student's "
                f"context is {self._policy.max_length})"
            )

    def _write(self, lives: Sequence[_Live], *, turn: int) -> Iterator[tuple[_Live, str]]:
        """One turn of each. Those with less room than `max_new_tokens` are written apart."""
        by_room: dict[int, list[_Live]] = defaultdict(list)
        for live in lives:
            by_room[min(self._config.max_new_tokens, self._room(live))].append(live)
        texts: dict[int, str] = {}
        for part, room in enumerate(sorted(by_room, reverse=True)):
            for live, written in zip(by_room[room], self._drawn(by_room[room], room, turn, part), strict=True):
                texts[id(live)] = live.talk.add_turn(written)
        return ((live, texts[id(live)]) for live in lives)

    def _drawn(self, lives: Sequence[_Live], room: int, turn: int, part: int) -> list[Written]:
        request = self._request
        return self._policy.write(
            [live.talk.ids for live in lives],
            temperature=self._config.temperature,
            top_p=self._config.top_p,
            max_new_tokens=room,
            seed=draw_seed(
                request.seed,
                step=request.step,
                batch=self._number,
                first_slot=request.first_slot,
                turn=turn,
                part=part,
            ),
        )

    def _hear(self, pending: Sequence[tuple[_Live, Pending[CheckedTurn]]], *, turn: int) -> None:
        for live, answer in pending:
            try:
                self._take(live, answer.result(), turn=turn)
            except InvalidEpisodeError as error:
                self._leave(live, error)

    def _take(self, live: _Live, answer: CheckedTurn, *, turn: int) -> None:
        live.info |= answer.info
        is_last = turn + 1 == self._config.max_turns and not answer.done
        live.talk.reward_turn(answer.reward_if_cut if is_last else answer.reward)
        if answer.done or is_last:
            live.finish_reason = "turns" if is_last else "stop"
            return
        if answer.assistant is not None:
            live.talk.replace_turn(answer.assistant)
        live.talk.add_messages(answer.messages)
        if self._room(live) < 1:
            live.finish_reason = "length"
            live.talk.reward_turn(answer.reward_if_cut)

    def _room(self, live: _Live) -> int:
        """Tokens that the student may still write."""
        return self._max_length - len(live.talk.ids)

    def _leave(self, live: _Live, error: InvalidEpisodeError) -> None:
        self._lives.remove(live)
        where = episode_name(live.example, live.sample)
        self._on_bad(error if error.where else InvalidEpisodeError(error.why, where=where))

    def _episodes(self, live: _Live) -> Iterator[Episode]:
        """Its parts; what nobody answered is left out."""
        parts = [part for part in live.talk.parts if part.segments]
        for number, part in enumerate(parts):
            is_last = number + 1 == len(parts)
            yield self._episode(live, part, number=number, finish=live.finish_reason if is_last else None)

    def _episode(self, live: _Live, part: Part, *, number: int, finish: FinishReason | None) -> Episode:
        """`finish` is None where the episode goes on in a further part."""
        segments, rewards = list(part.segments), list(part.rewards)
        if not segments[-1].is_policy:
            segments, rewards = segments[:-1], rewards[:-1]
        if not part.has_ended:
            finish = "length"
        is_rewarded = any(reward is not None for reward in rewards)
        is_own_prompt = part.messages == live.example.prompt
        rewritten = {} if part.rewritten_at_turn is None else {REWRITTEN_AT_TURN: part.rewritten_at_turn}
        return Episode(
            example=live.example,
            slot=live.slot,
            sample=live.sample,
            part=number,
            prompt_ids=part.prompt_ids,
            segments=tuple(segments),
            reward=tuple(rewards) if is_rewarded else None,
            policy_version=max(0, self._request.step - 1),
            finish_reason=finish or "stop",
            messages=() if is_own_prompt else part.messages,
            tools=() if live.tools == live.example.tools else live.tools,
            info={**live.info, **rewritten},
        )
