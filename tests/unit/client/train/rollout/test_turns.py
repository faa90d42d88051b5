"""Conversations with environments in lock step: what an episode holds, and what a bad one costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Environment, MakeEnvironment, Turn
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.engine import RolloutRequest
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import StudentEngine
from preceptor_client.train.rollout.policy import HfPolicy
from preceptor_client.train.student.student import Student
from preceptor_client.types import ChatMessage

from tests.unit.client.train.rollout.chat_templates import CHATML, THINKING, chat_tokenizer
from tests.unit.client.train.rollout.scripted_policy import ScriptedPolicy, writes
from tests.unit.client.train.rollout.talkers import MISFITS, RELEASE, Misfit, Talker, says, user

EXAMPLES = [Example(index=index, where=f"train.jsonl:{index + 1}", prompt=f"count {index}") for index in range(3)]
OPENING = ChatMessage(role="user", content="go")


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """None that a test began; other tests' environments may be computing for ever."""
    before = set(threading.enumerate())
    RELEASE.clear()
    yield
    RELEASE.set()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("environment of "):
            thread.join(timeout=10)
            assert not thread.is_alive()


def _config(**changes: object) -> RolloutConfig:
    given = {"prompts_per_step": 3, "max_new_tokens": 40, "batch_size": 16, "environment_timeout_seconds": 30.0}
    return RolloutConfig.model_validate(given | changes)


def _roll_out(
    policy: ScriptedPolicy | HfPolicy,
    make: MakeEnvironment,
    *,
    examples: Sequence[Example] = EXAMPLES[:1],
    config: RolloutConfig | None = None,
    step: int = 3,
    first_slot: int = 0,
    on_bad: Callable[[InvalidDataError | InvalidEpisodeError], None] | None = None,
) -> list[list[Episode]]:
    def fail(error: InvalidDataError | InvalidEpisodeError) -> None:
        raise error

    request = RolloutRequest(
        examples=examples,
        first_slot=first_slot,
        step=step,
        seed=0,
        config=config or _config(),
        make_environment=make,
    )
    return list(StudentEngine().run(request, policy=policy, on_bad=on_bad or fail))


def _scripted(*texts: str, template: str = CHATML, **options: int) -> ScriptedPolicy:
    tokenizer = chat_tokenizer(template)
    return ScriptedPolicy(tokenizer=tokenizer, write_ids=writes(tokenizer, texts), **options)  # type: ignore[arg-type]


def test_episode_holds_the_students_turns_and_what_the_environment_said() -> None:
    policy = _scripted("one<|im_end|>", "two<|im_end|>", "three<|im_end|>")
    lines = [
        Turn(messages=[user("more")], reward=0.5, info={"a": 1, "b": 1}),
        Turn(messages=[user("last")], info={"b": 2}),
        Turn(messages=[user("unread")], reward=-2.0, done=True),
    ]
    made: list[Talker] = []

    def make() -> Environment:
        made.append(Talker(lines=lines))
        return made[-1]

    (((episode,),)) = _roll_out(policy, make)
    assert [policy.decode(segment.ids) for segment in episode.segments] == [
        "one", "\nuser\nmore\nassistant\n", "two", "\nuser\nlast\nassistant\n", "three"
    ]  # fmt: skip
    assert [segment.is_policy for segment in episode.segments] == [True, False, True, False, True]
    assert not any(segment.is_masked for segment in episode.segments)
    assert episode.reward == (0.5, None, None, None, -2.0)
    assert episode.total_reward == -1.5
    assert episode.info == {"a": 1, "b": 2}
    assert episode.finish_reason == "stop"
    assert (episode.slot, episode.sample, episode.part, episode.policy_version) == (0, 0, 0, 2)
    assert episode.messages == (OPENING,)
    assert (made[0].heard, made[0].num_closed) == (["one", "two", "three"], 1)
    assert {segment.student is None for segment in episode.segments[1::2]} == {True}


def test_conversation_that_is_the_examples_own_prompt_is_not_told_twice() -> None:
    example = Example(index=0, prompt=(OPENING,))
    (((episode,),)) = _roll_out(_scripted("a<|im_end|>"), Talker, examples=[example])
    assert episode.messages == ()
    assert episode.reward is None


def test_slots_lie_side_by_side_with_their_samples_and_parts() -> None:
    tokenizer = chat_tokenizer(THINKING)
    ids = tokenizer("<think>\nw\n</think>\n\nso<|im_end|>", add_special_tokens=False)["input_ids"]
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: ids)
    config = _config(responses_per_prompt=2, batch_size=5)
    rewarded = [Turn(messages=[user("on")], reward=1.0), Turn(reward=2.0, done=True)]
    batches = _roll_out(policy, lambda: Talker(lines=rewarded), examples=EXAMPLES, config=config, first_slot=7)
    places = [[(one.slot, one.sample, one.part) for one in batch] for batch in batches]
    assert places == [
        [(slot, sample, part) for slot in slots for sample in (0, 1) for part in (0, 1)] for slots in ((7, 8), (9,))
    ]
    first, second = batches[0][:2]
    assert (first.reward, second.reward) == ((1.0,), (2.0,))
    assert (first.info, second.info) == ({}, {"history_rewritten_at_turn": 1})
    assert (first.finish_reason, second.finish_reason) == ("stop", "stop")
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert all(one.example is EXAMPLES[one.slot - 7] for batch in batches for one in batch)


def test_mask_keeps_one_part_and_masks_what_follows() -> None:
    policy = _scripted(*["<think>\nw\n</think>\n\nso<|im_end|>"] * 3, template=THINKING)
    config = _config(on_rewritten_history="mask")
    (((episode,),)) = _roll_out(policy, lambda: Talker(lines=says("on", "on")), config=config)
    assert [segment.is_masked for segment in episode.segments] == [False, False, True, False, True]
    assert episode.score_mask_T.sum() == len(episode.segments[0].ids)
    assert episode.info == {"history_rewritten_at_turn": 1}


def test_turns_are_limited() -> None:
    policy = _scripted("one<|im_end|>", "two<|im_end|>")
    (((episode,),)) = _roll_out(policy, lambda: Talker(lines=says(*"abcdef")), config=_config(max_turns=2))
    assert episode.finish_reason == "turns"
    assert [segment.is_policy for segment in episode.segments] == [True, False, True]


@pytest.mark.parametrize("template", [CHATML, THINKING])
@pytest.mark.parametrize("limit", [{"max_turns": 2}, {"max_episode_tokens": 170}, {}])
def test_turn_that_a_limit_ends_has_the_reward_for_that(limit: dict[str, int], template: str) -> None:
    """Also where its answer begins a further part, which nobody writes in."""
    texts = ["<think>\nw\n</think>\n\none<|im_end|>"] * 2 + ["<think>\nw\n</think>\n\nend<|im_end|>"]
    lines = [
        Turn(messages=[user("a")], reward=0.5, reward_if_cut=-1.0),
        Turn(messages=[user("b" * 200)], reward_if_cut=-2.0),
        Turn(reward=4.0, reward_if_cut=-4.0, done=True),
    ]
    ((parts,),) = (
        _roll_out(_scripted(*texts, template=template), lambda: Talker(lines=lines), config=_config(**limit)),
    )
    assert sum(part.total_reward or 0.0 for part in parts) == (0.5 - 2.0 if limit else 0.5 + 4.0)
    assert parts[-1].finish_reason == {"max_turns": "turns", "max_episode_tokens": "length"}.get("".join(limit), "stop")


def test_turn_that_was_cut_last_has_no_end() -> None:
    policy = _scripted("one<|im_end|>", "two")
    (((episode,),)) = _roll_out(policy, lambda: Talker(lines=says("a")))
    assert episode.finish_reason == "length"


@pytest.mark.parametrize(("max_episode_tokens", "max_length"), [(90, 10_000), (0, 90), (500, 90)])
def test_tokens_are_limited_and_a_question_that_nobody_can_answer_is_left_out(
    max_episode_tokens: int, max_length: int
) -> None:
    policy = _scripted("x" * 30, "y" * 30, max_length=max_length)
    config = _config(max_episode_tokens=max_episode_tokens, max_new_tokens=25)
    (((episode,),)) = _roll_out(policy, lambda: Talker(lines=says("a", "b" * 50)), config=config)
    assert episode.finish_reason == "length"
    assert len(episode.segments[0].ids) == 25
    assert episode.segments[-1].is_policy
    assert len(episode.prompt_ids) + len(episode.response_ids) <= 90
    assert [room for _, room, _ in policy.calls][-1] <= 25


def test_student_writes_no_further_than_its_episode_may_go() -> None:
    policy = _scripted("x" * 99)
    opening = len(policy.tokenizer("<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    (((episode,),)) = _roll_out(policy, Talker, config=_config(max_episode_tokens=opening + 7))
    assert len(episode.response_ids) == 7
    assert [room for _, room, _ in policy.calls] == [7]


def test_those_with_less_room_are_written_apart_by_draws_of_their_own() -> None:
    tokenizer = chat_tokenizer(CHATML)
    ids = tokenizer("hello the<|im_end|>")["input_ids"]
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: ids, max_length=60)
    openings = iter(("a", "b" * 20, "c"))
    _roll_out(
        policy, lambda: Talker(opening=[user(next(openings))]), examples=EXAMPLES, config=_config(max_new_tokens=25)
    )
    assert [(number, room) for number, room, _ in policy.calls] == [(2, 25), (1, 21)]  # 60 - 39
    assert len({seed for _, _, seed in policy.calls}) == 2


def test_opening_that_leaves_no_room_is_told_with_the_setting() -> None:
    bad: list[Exception] = []
    batches = _roll_out(_scripted(), Talker, config=_config(max_episode_tokens=3), on_bad=bad.append)
    assert batches == []
    assert str(bad[0]).startswith("train.jsonl:1 (episode 0): its environment begins with ")
    assert "an episode has at most 3: shorten what reset() gives, or raise rollout.max_episode_tokens" in str(bad[0])


@pytest.mark.parametrize("how", MISFITS)
def test_bad_environment_costs_one_episode(how: str) -> None:
    """Of three in a group; the one in the middle."""
    tokenizer = chat_tokenizer(CHATML)
    ids = tokenizer("so<|im_end|>")["input_ids"]
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: ids)
    numbers, lock, good = count(), threading.Lock(), [Talker(lines=says("on", "on")) for _ in range(2)]

    def make() -> Environment:
        with lock:
            number = next(numbers)
        return Misfit(how=how) if number == 1 else good[number // 2]

    bad: list[InvalidDataError | InvalidEpisodeError] = []
    config = _config(responses_per_prompt=3, environment_timeout_seconds=2 if how in ("blocks", "hangs") else 30)
    ((*episodes,),) = _roll_out(policy, make, config=config, on_bad=bad.append)
    assert len(episodes) == 2
    assert all(len(episode.segments) == 5 for episode in episodes)
    (error,) = bad
    assert isinstance(error, InvalidEpisodeError)
    (lost,) = {0, 1, 2} - {episode.sample for episode in episodes}
    assert error.where == f"train.jsonl:1 (episode {lost})"
    assert error.why.startswith(MISFITS[how])
    assert [one.num_closed for one in good] == [1, 1]


def test_template_that_refuses_a_conversation_costs_one_episode() -> None:
    template = CHATML.replace(
        "{%- if tools %}",
        "{%- if messages[-1].content == 'no' %}{{ raise_exception('no') }}{% endif %}{%- if tools %}",
        1,
    )
    tokenizer = chat_tokenizer(template)
    ids = tokenizer("so<|im_end|>")["input_ids"]
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: ids)
    talks = iter((says("no"), says("yes")))
    bad: list[Exception] = []
    ((episode,),) = _roll_out(policy, lambda: Talker(lines=next(talks)), examples=EXAMPLES[:2], on_bad=bad.append)
    assert len(episode.segments) == 3
    assert "chat template refuses its messages" in str(bad[0])


def test_what_is_raised_for_a_bad_episode_ends_the_run_and_closes_the_others() -> None:
    tokenizer = chat_tokenizer(CHATML)
    ids = tokenizer("so<|im_end|>")["input_ids"]
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: ids)
    good = Talker(lines=says("on", "on"))
    made: Iterator[Environment] = iter((good, Misfit(how="raises")))
    with pytest.raises(InvalidEpisodeError, match="KeyError"):
        _roll_out(policy, lambda: next(made), examples=EXAMPLES[:2])
    assert good.num_closed == 1


def test_error_in_closing_is_logged_and_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Stubborn(Talker):
        async def close(self) -> None:
            raise OSError("busy")

    (((episode,),)) = _roll_out(_scripted("a<|im_end|>"), Stubborn)
    assert episode.finish_reason == "stop"
    assert "train.jsonl:1 (episode 0): its environment's close() failed: OSError: busy" in caplog.text


def test_blocking_environments_wait_side_by_side() -> None:
    """Each step waits until all three are at theirs: one after the other none would end."""
    barrier = threading.Barrier(3, timeout=30)

    class Waiting(Talker):
        async def step(self, text: str) -> Turn:
            barrier.wait()
            return Turn(done=True, reward=1.0)

    tokenizer = chat_tokenizer(CHATML)
    ids = tokenizer("so<|im_end|>")["input_ids"]
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: ids)
    (episodes,) = _roll_out(policy, Waiting, examples=EXAMPLES)
    assert [episode.total_reward for episode in episodes] == [1.0] * 3


def test_methods_that_are_not_async_and_a_missing_close_do_too() -> None:
    class Plain:
        tools = ({"type": "function", "function": {"name": "f"}},)

        def reset(self, example: Example) -> list[dict[str, str]]:
            return [user(str(example.prompt))]

        def step(self, text: str) -> tuple[list[dict[str, str]], float, bool]:
            return [], 1, True

    # What the seam's check lets pass is more than its types say.
    (((episode,),)) = _roll_out(_scripted("a<|im_end|>"), Plain)  # type: ignore[arg-type]
    assert episode.messages == (ChatMessage(role="user", content="count 0"),)
    assert episode.total_reward == 1.0
    assert episode.tools == ('{"type": "function", "function": {"name": "f"}}',)


def test_equal_seeds_give_equal_episodes_of_the_real_student(student: Student) -> None:
    policy = HfPolicy(student)
    config = _config(responses_per_prompt=2, max_new_tokens=6, batch_size=4)

    def episodes(step: int, *, first_slot: int = 0) -> list[list[Episode]]:
        talk = lambda: Talker(lines=says("on", "on"))  # noqa: E731
        return _roll_out(policy, talk, examples=EXAMPLES, config=config, step=step, first_slot=first_slot)

    first = episodes(1)
    assert episodes(1) == first
    assert [[one.segments[0].ids for one in batch] for batch in episodes(2)] != [
        [one.segments[0].ids for one in batch] for batch in first
    ]
    assert [one.segments for one in episodes(1, first_slot=3)[0]] != [one.segments for one in first[0]]
    drawn = [segment.ids for one in first[0] for segment in one.segments if segment.is_policy]
    assert len(set(drawn)) == len(drawn), "turns and samples are drawn apart"


@torch.no_grad()
def test_what_the_student_noted_is_what_a_plain_forward_says_of_the_whole_episode(student: Student) -> None:
    """fp32 against fp64 over all ids of an episode, read at once: 1e-4 is what the two may differ by."""
    config = _config(responses_per_prompt=2, max_new_tokens=8)
    (episodes,) = _roll_out(HfPolicy(student), lambda: Talker(lines=says("on", "more")), config=config)
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
        logits_TV = student.model(ids, use_cache=False).logits[0, len(episode.prompt_ids) - 1 : -1].double()
        logprobs_TV = torch.log_softmax(logits_TV, dim=1)
        wanted_T = logprobs_TV.gather(1, torch.tensor(episode.response_ids)[:, None])[:, 0].numpy()
        is_own_T = episode.is_policy_T
        assert 0 < is_own_T.sum() < len(is_own_T)
        np.testing.assert_allclose(episode.student.logprobs_T[is_own_T], wanted_T[is_own_T], atol=1e-4)
        assert np.isnan(episode.student.logprobs_T[~is_own_T]).all()
