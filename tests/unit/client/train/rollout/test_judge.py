from __future__ import annotations

import pytest
from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.rollout.judge import Judge
from preceptor_client.train.rollout.rewards import REWARD, WeightedReward, rewarded
from preceptor_client.types import ChatMessage

from tests.unit.client.train.rollout.chat_servers import Answer, Asked, said, serving, unused_port
from tests.unit.client.train.rollout.fake_policy import OnBadList
from tests.unit.client.train.rollouts import student_view

PROMPT = "Task {task}: {prompt}\nRight: {answer}\nWritten: {response}\nEnd with a number from 0 to 10."
TEXTS = {5: "Oslo, {answer} and {x}", 6: "Bergen"}


def episodes() -> list[Episode]:
    example = Example(
        index=0, prompt=(ChatMessage("user", "capital?"),), answer="Oslo", other_answers=("Christiania",), task="geo"
    )
    return [
        single_turn(
            example=example, slot=0, sample=sample, prompt_ids=(1,), response_ids=(token,), finish_reason="stop",
            student=student_view(1),
        )
        for sample, token in enumerate((5, 6))
    ]  # fmt: skip


def judged(judge: Judge, bad: OnBadList | None = None) -> dict[int, object]:
    reward = WeightedReward(name="judge", reward=judge)
    on_bad = bad or OnBadList()
    done = rewarded(episodes(), rewards=[reward], decode=lambda ids: TEXTS[ids[0]], on_bad=on_bad)
    return {one.sample: one.reward for one in done}


def test_number_at_the_end_of_the_reply_is_scaled_and_the_rubric_is_filled_in_once() -> None:
    def script(asked: Asked) -> Answer:
        return said("Of 3 points all hold. Score: 7.5" if "Oslo, " in asked["messages"][0]["content"] else "**1**")

    with serving(script) as server:
        assert judged(Judge(server.url, "j", PROMPT)) == {0: 0.75, 1: 0.1}
    asked = {one["messages"][0]["content"] for _, one in server.asked}
    assert asked == {
        f"Task geo: capital?\nRight: Oslo or Christiania\nWritten: {text}\nEnd with a number from 0 to 10."
        for text in TEXTS.values()
    }


@pytest.mark.parametrize("reply", ["I cannot say", "11", "-1", "v2a", "1e400"])
def test_reply_without_a_number_in_the_range_costs_its_episode(reply: str) -> None:
    def script(asked: Asked) -> Answer:
        return said(reply if "Bergen" in asked["messages"][0]["content"] else "4")

    bad = OnBadList()
    with serving(script) as server:
        assert judged(Judge(server.url, "j", PROMPT), bad) == {0: 0.4}
    (text,) = bad.texts
    assert "example 0 (episode 1): its reward judge failed: ValueError: the judge gave no number from 0 to 10" in text


def test_judge_that_hangs_or_writes_nonsense_costs_its_episode_and_one_that_is_away_is_raised() -> None:
    def script(asked: Asked) -> Answer:
        is_second = "Bergen" in asked["messages"][0]["content"]
        return Answer(hangs=True) if is_second else Answer(content=b"?")

    bad = OnBadList()
    with serving(script) as server:
        assert judged(Judge(server.url, "j", PROMPT, timeout_seconds=1.0), bad) == {}
    assert "answered something else" in bad.texts[0]
    assert "gave no answer in 1 s" in bad.texts[1]
    with pytest.raises(TeacherUnavailableError, match="gave no answer"):
        judged(Judge(f"http://127.0.0.1:{unused_port()}", "j", PROMPT, timeout_seconds=0.3))


def test_rubric_must_hold_the_response_and_bounds_must_be_bounds() -> None:
    options = {"base_url": "http://h:1", "model": "j", "prompt": PROMPT}
    assert isinstance(REWARD.make("judge", options, key="rewards[0].kind"), Judge)
    with pytest.raises(InvalidPartError, match=r"rewards\[0\]\.options: judge refuses them: prompt does not hold"):
        REWARD.make("judge", {**options, "prompt": "well?"}, key="rewards[0].kind")
    with pytest.raises(InvalidPartError, match=r"lowest=10\.0 is not below highest=10\.0"):
        REWARD.make("judge", {**options, "lowest": 10}, key="rewards[0].kind")
