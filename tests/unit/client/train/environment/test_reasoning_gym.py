"""Against the real package where it is installed (make .venv/.environments), as in CI."""

from __future__ import annotations

import pytest
from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import environment_maker
from preceptor_client.train.environment.reasoning_gym import INSTRUCTION, ReasoningGym, reasoning_gym_examples
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.types import ChatMessage
from pydantic import JsonValue

from tests.unit.client.train.environment.episodes import play

OPTIONS: dict[str, JsonValue] = {"dataset": "basic_arithmetic", "size": 5, "seed": 1}


def test_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(
        InvalidPartError, match=r"^environment\.kind='reasoning_gym': .*pip install 'preceptor\[environments\]'"
    ):
        environment_maker("reasoning_gym", {"dataset": "letter_counting"}, key="environment.kind")


def test_answer_is_verified_and_a_question_belongs_to_an_index() -> None:
    pytest.importorskip("reasoning_gym", reason="make .venv/.environments installs it", exc_type=ImportError)
    make = environment_maker("reasoning_gym", OPTIONS, key="environment.kind")
    (example, *_) = examples = reasoning_gym_examples("basic_arithmetic", size=5, seed=1)
    assert example.answer is not None
    opening, (right,) = play(make(), Example(index=5, prompt=""), [f"I think <answer>{example.answer}</answer>."])
    assert opening == example.prompt
    assert opening[0] == ChatMessage(role="system", content=INSTRUCTION)
    assert (right.reward, right.done, right.info) == (1.0, True, {"expected_answer": example.answer})
    _, (wrong,) = play(make(), example, [f"<think>{example.answer}</think><answer>12345678</answer>"])
    assert wrong.reward == 0.0
    _, (bare,) = play(make(), example, [f"<think>hm</think>\n{example.answer}"])
    assert bare.reward == 1.0
    assert [one.task for one in examples] == ["basic_arithmetic"] * 5
    assert len({one.prompt for one in examples}) == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"dataset": "nope"},
            r"dataset='nope', options=\{\}: reasoning-gym refuses them: Dataset 'nope' not registered",
        ),
        (
            {"dataset": "basic_arithmetic", "options": {"sizes": 1}},
            "refuses them: .*unexpected keyword argument 'sizes'",
        ),
    ],
)
def test_what_the_package_refuses_is_told(options: dict[str, JsonValue], expected: str) -> None:
    pytest.importorskip("reasoning_gym", reason="make .venv/.environments installs it", exc_type=ImportError)
    with pytest.raises(InvalidPartError, match=expected):
        environment_maker("reasoning_gym", options, key="environment.kind")


def test_without_an_instruction_the_question_stands_alone() -> None:
    pytest.importorskip("reasoning_gym", reason="make .venv/.environments installs it", exc_type=ImportError)
    opening, _ = play(
        ReasoningGym(dataset="basic_arithmetic", size=5, seed=1, instruction=""), Example(index=0, prompt=""), []
    )
    assert [message.role for message in opening] == ["user"]
