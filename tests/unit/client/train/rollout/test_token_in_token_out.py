"""For any tokens, turns and cut-offs: an episode's ids are what the student was given, and what it gave back."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Turn
from preceptor_client.train.rollout.config import OnRewrittenHistory, RolloutConfig
from preceptor_client.train.rollout.engine import RolloutRequest
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import StudentEngine
from transformers import PreTrainedTokenizerFast

from tests.unit.client.train.rollout.chat_templates import CHATML, HEADERS, THINKING, chat_tokenizer
from tests.unit.client.train.rollout.scripted_policy import ScriptedPolicy
from tests.unit.client.train.rollout.talkers import Talker

TOKENIZERS = {template: chat_tokenizer(template) for template in (CHATML, THINKING, HEADERS)}
NUM_IDS = len(TOKENIZERS[CHATML])
END_IDS = {0, 2, 6}
many = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ordinary = st.sampled_from([token for token in range(NUM_IDS) if token not in END_IDS])
thoughts = st.sampled_from([7, 8])
"""<think> and </think>, often enough for the template to take turns apart."""
turn = st.builds(
    lambda ids, end: [*ids, *end],
    st.lists(ordinary | thoughts, min_size=1, max_size=8),
    st.sampled_from([[], [2], [6], [0]]),
)
words = st.text(st.sampled_from("he llo\nt é<|>"), max_size=6)
replies = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "user"]), "content": words}), min_size=1, max_size=2
)


def _rendered(tokenizer: PreTrainedTokenizerFast, messages: Sequence[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def _roll_out(
    tokenizer: PreTrainedTokenizerFast,
    *,
    opening: Sequence[dict[str, str]],
    turns: Sequence[list[int]],
    answers: Sequence[list[dict[str, str]]],
    on_rewritten: OnRewrittenHistory,
) -> tuple[list[Episode], ScriptedPolicy]:
    left = list(turns)
    policy = ScriptedPolicy(tokenizer=tokenizer, write_ids=lambda prompt: left.pop(0), num_ids=NUM_IDS)
    config = RolloutConfig(
        prompts_per_step=1, max_new_tokens=6, max_turns=len(turns), on_rewritten_history=on_rewritten
    )

    def fail(error: Exception) -> None:
        raise error

    lines = [Turn(messages=answer, reward=float(number)) for number, answer in enumerate(answers)]
    request = RolloutRequest(
        examples=[Example(index=0, prompt="")],
        step=1,
        seed=0,
        config=config,
        make_environment=lambda: Talker(opening=opening, lines=lines),
    )
    (parts,) = StudentEngine().run(request, policy=policy, on_bad=fail)
    return parts, policy


@many
@given(
    template=st.sampled_from(list(TOKENIZERS)),
    opening=replies,
    talk=st.lists(st.tuples(turn, replies), min_size=1, max_size=4),
    on_rewritten=st.sampled_from(["rerender", "mask"]),
)
def test_an_episode_is_what_the_student_read_and_wrote(
    template: str,
    opening: list[dict[str, str]],
    talk: list[tuple[list[int], list[dict[str, str]]]],
    on_rewritten: OnRewrittenHistory,
) -> None:
    tokenizer, turns = TOKENIZERS[template], [ids for ids, _ in talk]
    answers = [answer for _, answer in talk]
    parts, policy = _roll_out(tokenizer, opening=opening, turns=turns, answers=answers, on_rewritten=on_rewritten)
    found = []
    for part in parts:
        before = part.prompt_ids
        for segment in part.segments:
            if segment.is_policy:
                found.append((before, segment.ids))
                assert segment.student is not None
                assert [-value for value in segment.student.logprobs_T] == list(range(len(segment.ids)))
            before += segment.ids
        assert part.segments[-1].is_policy
        assert part.response_ids == before[len(part.prompt_ids) :]
    assert found == policy.written
    # Cut at 6 tokens, and nothing else is changed of what the student wrote.
    assert [ids for _, ids in policy.written] == [tuple(ids[:6]) for ids in turns]
    assert sum(part.num_policy_tokens for part in parts) == sum(len(ids[:6]) for ids in turns)
    assert sum(part.total_reward or 0 for part in parts) == sum(range(len(talk)))
    assert [part.part for part in parts] == list(range(len(parts)))
    _check_renderings(tokenizer, parts, opening=opening, turns=turns, answers=answers)
    if on_rewritten == "mask":
        assert len(parts) == 1


def _check_renderings(
    tokenizer: PreTrainedTokenizerFast,
    parts: Sequence[Episode],
    *,
    opening: Sequence[dict[str, str]],
    turns: Sequence[list[int]],
    answers: Sequence[list[dict[str, str]]],
) -> None:
    """What the student read before each of its turns is, as a text, the conversation through the template; but not
    where it is masked, and there alone the two differ."""
    messages = list(opening)
    prompts = [
        (part.prompt_ids + tuple(part.response_ids[:start]), segment.is_masked)
        for part in parts
        for segment, start in zip(part.segments, _starts(part), strict=True)
        if segment.is_policy
    ]
    was_masked = False
    for (read, is_masked), wrote, answer in zip(prompts, turns, answers, strict=True):
        text = tokenizer.decode(list(read))
        if is_masked and not was_masked:
            assert text != _rendered(tokenizer, messages)
        was_masked |= is_masked
        assert is_masked == was_masked, "once history is rewritten, all that follows is masked"
        assert is_masked or text == _rendered(tokenizer, messages)
        cut = wrote[:6]
        content = tokenizer.decode(cut[:-1] if cut[-1] in END_IDS else cut)
        messages += [{"role": "assistant", "content": str(content)}, *answer]


def _starts(part: Episode) -> list[int]:
    lengths = [len(segment.ids) for segment in part.segments]
    return [sum(lengths[:number]) for number in range(len(lengths))]
