"""Examples of rollouts, rewards, environments and hooks: each does to a real run what its docstring says."""

# T = tokens of a response, N = scored positions, V = vocabulary, K = likeliest tokens

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import prompt_text
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.student import prepare_student
from preceptor_client.train.teacher.scored import ScoredEpisode
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.integration.example_runs import ExampleRuns
from tests.integration.servers import MAY_UPDATE_WEIGHTS, running_server
from tests.integration.taught import taught_student
from tests.integration.trainers import WORDS
from tests.tiny import tiny_tokenizer
from tests.unit.client.train.assembled import learner_for
from tests.unit.client.train.rollout.chat_servers import Answer, Asked, said, serving

WRONG, RIGHT, FAR = "I think 4.", "So it is 42", "%&ZQ~^|}{XJ 42"
"""The taught student says the second by itself, and nothing like the third."""
CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "6 * (8 - 1)"}}</tool_call>'
BAD_CALL = '<tool_call>{"name": "calculate", "arguments": {"expression": "print(1)"}}</tool_call>'
REFUSED = "error: ValueError: only numbers, + - * / and parentheses can be calculated"
FIRST = "Guess a number from 1 to 9."
LESSONS = [
    [
        ("system", "calculate"),
        ("user", "6 * (8 - 1)?"),
        ("assistant", CALL),
        ("tool", "42"),
        ("assistant", "It is 42."),
    ],
    [
        ("system", "calculate"),
        ("user", "Print it."),
        ("assistant", BAD_CALL),
        ("tool", REFUSED),
        ("assistant", "I cannot."),
    ],
    [("user", FIRST), ("assistant", "Is it 5?"), ("user", "It is higher."), ("assistant", "7")],
    [("user", FIRST), ("assistant", "Is it 5?"), ("user", "It is lower."), ("assistant", "3")],
    *([("user", word), ("assistant", RIGHT)] for word in WORDS[:9]),
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_student(tmp_path_factory.mktemp("taught"), LESSONS)


Weights = dict[str, torch.Tensor]


def _weights(directory: Path, *, step: int) -> Weights:
    (path,) = (directory / "checkpoints" / f"step-{step:06d}").rglob("model.safetensors")
    return load_file(path)


def _text(episode: Episode) -> str:
    """What the student, or who wrote for it, said last."""
    turn = [segment.ids for segment in episode.segments if segment.is_policy][-1]
    text = tiny_tokenizer().decode(list(turn), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _advantages_N(one: ScoredEpisode) -> np.ndarray:
    assert one.advantages_N is not None
    return one.advantages_N


def _lines(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """Writes JSON lines; returns the path as TOML has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return json.dumps(str(path))


def _logprobs_T(model: PreTrainedModel, episode: Episode) -> torch.Tensor:
    """Of each token of the response, in the model's dtype, with a graph."""
    ids = torch.tensor([[*episode.prompt_ids, *episode.response_ids]])
    logits_TV = model(ids, use_cache=False).logits[0, len(episode.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits_TV, 1)[torch.arange(len(episode.response_ids)), list(episode.response_ids)]


def _asked_text(asked: Asked) -> str:
    text = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
    assert isinstance(text, str)
    return text


# EffOPD


def test_effopd_goes_on_in_the_direction_of_the_step_while_the_heldout_loss_falls(examples: ExampleRuns) -> None:
    also = "[evaluation]\nloss = true\nevery_steps = 1\n[optimizer]\nlearning_rate = 3e-3\n"
    plain = examples.train("effopd", also="hooks = []\n" + also, run="plain", num_steps=1)
    further = examples.train("effopd", also=also, num_steps=1)
    start = load_file(examples.student / "model.safetensors")
    own, found = _weights(plain.directory, step=1), _weights(further.directory, step=1)
    times = {
        round(math.log2(float((found[name] - own[name]).norm() / (own[name] - start[name]).norm())), 2) for name in own
    }
    assert len(times) == 1  # every weight went on equally far, by a power of two
    (k,) = times
    assert k in range(8)
    for name in own:
        torch.testing.assert_close(found[name], own[name] + 2**k * (own[name] - start[name]), rtol=1e-5, atol=1e-6)
    (_, after), (_, went_on) = plain.heldout_rows, further.heldout_rows
    assert isinstance(after["loss"], float)
    assert isinstance(went_on["loss"], float)
    assert went_on["loss"] < after["loss"]
    moments = [
        torch.load(one.directory / "checkpoints" / "step-000001" / "optimizer.pt")["state"][0]["exp_avg"]
        for one in (plain, further)
    ]
    torch.testing.assert_close(moments[0], moments[1], rtol=0, atol=0)


def test_effopd_of_a_run_that_goes_on_moves_from_where_it_moved_last(examples: ExampleRuns) -> None:
    also = "[optimizer]\nlearning_rate = 1e-3\n"
    examples.train("effopd", also=also, run="whole", num_steps=2)
    examples.train("effopd", also=also, run="halves", num_steps=1)
    examples.train("effopd", also=also, run="halves", num_steps=2)
    whole, halves = (_weights(examples.folder / run, step=2) for run in ("whole", "halves"))
    for name in whole:
        torch.testing.assert_close(whole[name], halves[name], rtol=0, atol=0)


# BRTS


class StudentsAlone:
    """Nothing of what the teacher wrote counts."""

    def weigh(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        del at
        return [np.full(len(one.scores.positions_N), float(one.episode.info["engine"] == "student")) for one in scored]


def _row(word: str, **fields: object) -> dict[str, object]:
    return {"prompt": [{"role": "user", "content": word}], **fields}


def _two_answers(asked_before: dict[str, int]) -> Callable[[Asked], Answer]:
    """A teacher: of the prompts, a third has one right answer, a third none, a third two."""
    lock = threading.Lock()

    def answer(asked: Asked) -> Answer:
        prompt = _asked_text(asked)
        with lock:
            place = asked_before[prompt] = asked_before.get(prompt, -1) + 1
        first, second = [(WRONG, RIGHT), (WRONG, WRONG), (FAR, RIGHT)][WORDS.index(prompt) % 3]
        return said(second if place % 2 else first)

    return answer


def test_brts_trains_a_little_on_the_right_answer_that_is_nearest_to_the_student(
    examples: ExampleRuns, taught: Path
) -> None:
    examples = replace(examples, student=taught)
    data = _lines(examples.folder / "sums.jsonl", [_row(word, answer="42") for word in WORDS[:9]])
    also = f"data.train = {data}\nrollout.responses_per_prompt = 1\nrollout.prompts_per_step = 9\n"
    also += "rollout.max_new_tokens = 40\n"
    asked: dict[str, int] = {}
    with serving(_two_answers(asked)) as teacher:
        put = {"http://127.0.0.1:8000": teacher.url}
        trained = examples.train("brts", put=put, also=also, num_steps=1)
        losses = [trained.rows[0]["loss"]]
        for run, rule in (("without", ""), ("alone", f"{__name__}:StudentsAlone")):
            others = put | {'weights.kind = "brts:TeachersText"\n': f'weights.kind = "{rule}"\n' if rule else ""}
            losses.append(examples.train("brts", put=others, also=also, run=run, num_steps=1).rows[0]["loss"])
    theirs = {
        prompt_text(one.episode.example.prompt): one.episode
        for one in trained.scored
        if one.episode.info["engine"] == "openai"
    }
    assert {WORDS.index(word) % 3 for word in theirs} == {0, 2}
    assert len(theirs) == 6
    assert {_text(episode) for episode in theirs.values()} == {RIGHT}
    # All three runs begin with the same texts: what each loss is made of follows from the other two.
    own = sum(len(one.scores.positions_N) for one in trained.scored if one.episode.info["engine"] == "student")
    foreign = sum(len(one.scores.positions_N) for one in trained.scored) - own
    weighted, without, alone = (float(loss) for loss in losses if isinstance(loss, float))
    foreign_loss = (without * (own + foreign) - alone * own) / foreign
    assert weighted == pytest.approx((alone * own + 0.05 * foreign_loss * foreign) / (own + 0.05 * foreign), rel=1e-4)
    assert abs(weighted - without) > 0.01


# ROPD

RUBRIC = {"has a vowel": 3, "has an e": 1}
_QUESTION = re.compile(r"\A.*?\n\nAnswer: (.*)\n\nDoes the answer meet this: (.*)\?\nEnd with 1 .*\Z", re.DOTALL)


def _meets(text: str, point: str) -> bool:
    return bool(set(text) & set("aeiou" if point == "has a vowel" else "e"))


def _verdict(asked: Asked) -> Answer:
    found = _QUESTION.match(_asked_text(asked))
    assert found is not None
    return said(f"This has 2 sides. {int(_meets(found[1], found[2]))}")


def test_ropd_rewards_the_weighted_share_of_the_points_that_a_judge_finds_met(examples: ExampleRuns) -> None:
    rows = [{"prompt": word, "rubric": RUBRIC} for word in WORDS]
    data = _lines(examples.folder / "rubrics.jsonl", rows)
    also = f"[data]\ntrain = {data}\nheldout = {data}\n"
    with serving(_verdict) as judge:
        trained = examples.train("ropd", put={"http://127.0.0.1:8001": judge.url}, also=also)
        # Two points of each answer, and of one to each of 12 held-out prompts before and after.
        assert len(judge.asked) == 2 * len(trained.scored) + 2 * 24 == 2 * 16 + 2 * 24
    rewards = [one.episode.total_reward for one in trained.scored]
    assert rewards == [
        sum(weight * _meets(_text(one.episode), point) for point, weight in RUBRIC.items()) / 4
        for one in trained.scored
    ]
    assert len(set(rewards)) == 3
    assert trained.weights_change > 0


# Signal reshaping


def test_signal_reshaping_ranks_what_compiles_and_scales_the_credit_of_each_turn(examples: ExampleRuns) -> None:
    data = _lines(examples.folder / "code.jsonl", [{"prompt": "Code.", "answer": "42"}])
    texts = ["x = (", "x = 1", "x = 42"]
    turns = [
        {"text": "y = 1", "is_policy": True},
        {"text": "go on", "is_policy": False},
        {"text": "z = 42", "is_policy": True},
    ]
    written: list[dict[str, object]] = [{"prompt": "Code.", "response": text} for text in texts]
    written.append({"prompt": "Code.", "segments": turns, "info": {"turn_scores": [0.25, 2.0]}})
    episodes = _lines(examples.folder / "code-episodes.jsonl", written)
    also = f"""
objective.coefficient = 0
optimizer.learning_rate = 1e-3
data.train = {data}
[rollout]
prompts_per_step = 1
engine = "jsonl"
engine_options = {{ path = {episodes}, take = "all" }}
"""
    trained = examples.train("signal_reshaping", also=also, num_steps=6)
    assert trained.weights_change > 0
    rewards = np.array([0.0, 0.5, 1.0, 1.0])
    advantages = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    for step in trained.steps:
        assert [one.episode.total_reward for one in step.scored] == rewards.tolist()
        *single, of_two = step.scored
        for one, advantage in zip(single, advantages, strict=False):
            np.testing.assert_allclose(_advantages_N(one), advantage, rtol=1e-12)
        turns_N = of_two.episode.turns_T[of_two.scores.positions_N]
        assert set(turns_N) == {0, 1}
        np.testing.assert_allclose(_advantages_N(of_two), advantages[3] * np.array([0.25, 2.0])[turns_N], rtol=1e-12)
    means = [[one.episode.student.logprobs_T[one.scores.positions_N].mean() for one in trained.steps[place].scored[:3]]
             for place in (0, -1)]  # fmt: skip
    assert means[1][2] > means[0][2]  # the right one
    assert means[1][0] < means[0][0]  # the one that does not compile


# PBSD


def _pairs(scored: Sequence[ScoredEpisode]) -> list[tuple[ScoredEpisode, ScoredEpisode]]:
    """The teacher's and the student's, of each prompt."""
    by_slot: dict[int, dict[str, ScoredEpisode]] = {}
    for one in scored:
        by_slot.setdefault(one.episode.slot, {})[str(one.episode.info["engine"])] = one
    return [(pair["openai"], pair["student"]) for pair in by_slot.values()]


def test_pbsd_moves_along_the_gradient_of_its_logistic_loss(examples: ExampleRuns, tiny_folder: Path) -> None:
    also = "rollout.responses_per_prompt = 1\nrollout.prompts_per_step = 4\nobjective.reduction_scale = 4\n"
    with serving(lambda asked: said(f"{_asked_text(asked)}!")) as teacher:
        trained = examples.train("pbsd", put={"http://127.0.0.1:8000": teacher.url}, also=also, num_steps=1)
    (step,) = trained.steps
    student, q = (AutoModelForCausalLM.from_pretrained(path).double() for path in (examples.student, tiny_folder))
    pairs = _pairs(step.scored)
    assert len(pairs) == 4
    losses = []
    for won, lost in pairs:
        ratios = [
            (_logprobs_T(student, one.episode) - _logprobs_T(q, one.episode).detach())[one.scores.positions_N].sum()
            for one in (won, lost)
        ]
        margin = 0.1 * (ratios[0] - ratios[1])
        losses.append(-logsigmoid(margin))
        pull = 0.1 * float(torch.sigmoid(-margin).detach())
        for one, advantage in ((won, pull), (lost, -pull)):
            np.testing.assert_allclose(_advantages_N(one), advantage, rtol=1e-3)  # the wire's and the student's float32
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(student.parameters()))
    # What the learner makes of the same episodes, with the settings of the example.
    own = prepare_student(AutoModelForCausalLM.from_pretrained(examples.student), tiny_tokenizer())
    objective = ObjectiveConfig(coefficient=0, reduction="fixed_scale", reduction_scale=4)
    credit = CreditConfig(kind="grpo")  # in place of the example's: its advantages are those of the run
    shaping = Shaping(reduction=objective.make_reduction(), coefficient=0, credit=_Given())
    at = StepContext(step=1, num_steps=1, tokenizer=own.tokenizer, end_token_ids=own.end_token_ids)
    learner = learner_for(
        own,
        config=OptimizerConfig(learning_rate=1e-3, micro_batch_size=3),
        loss=Loss(own, config=objective, temperature=1.0, credit=credit),
    )
    learner.accumulate_gradients({"": shaping.shape(step.scored, at)})
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    assert scale > 1e-3
    for parameter, gradient in zip(own.model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-3, atol=1e-4 * scale)


class _Given:
    """The credit that the episodes have."""

    def credit(self, scored: Sequence[ScoredEpisode], at: StepContext) -> list[np.ndarray]:
        del at
        return [_advantages_N(one) for one in scored]


# Environments


def _conversations(examples: ExampleRuns, rows: Sequence[Mapping[str, object]]) -> str:
    """Settings: the likeliest token is written."""
    return f"""
data.train = {_lines(examples.folder / "conversations.jsonl", rows)}
rollout.top_p = 0.01
rollout.max_new_tokens = 120
rollout.responses_per_prompt = 1
rollout.prompts_per_step = {len(rows)}
"""


def _said(episode: Episode) -> list[tuple[bool, str]]:
    """Who wrote which text: whether the student did."""
    decode: Any = tiny_tokenizer().decode
    return [(segment.is_policy, decode(list(segment.ids))) for segment in episode.segments]


def test_tool_environment_calls_the_calculator_and_trains_on_the_students_turns_alone(
    examples: ExampleRuns, taught: Path
) -> None:
    also = _conversations(
        examples, [{"prompt": "6 * (8 - 1)?", "answer": "42"}, {"prompt": "Print it.", "answer": "1"}]
    )
    trained = replace(examples, student=taught).train("tool_environment", also=also, num_steps=1)
    by_prompt = {one.episode.example.prompt: one for one in trained.scored}
    right, refused = by_prompt["6 * (8 - 1)?"], by_prompt["Print it."]
    told = "\n<|im_start|>tool\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert _said(right.episode) == [
        (True, f"{CALL}<|im_end|>"),
        (False, told.format(42)),
        (True, "It is 42.<|im_end|>"),
    ]
    assert _said(refused.episode)[1] == (False, told.format(REFUSED))
    assert [one.episode.total_reward for one in (right, refused)] == [1.0, 0.0]
    assert refused.episode.info["num_failed_tool_calls"] == 1
    for one in (right, refused):
        assert set(one.scores.positions_N) <= set(np.flatnonzero(one.episode.is_policy_T))
        assert {0, 1} == set(one.episode.turns_T[one.scores.positions_N])
    assert trained.weights_change > 0


def test_higher_lower_answers_each_guess_and_rewards_an_early_one_more(examples: ExampleRuns, taught: Path) -> None:
    also = _conversations(examples, [{"prompt": "guess", "answer": str(number)} for number in (5, 7, 3, 9)])
    runs = replace(examples, student=taught)
    trained = runs.train("higher_lower", put={"highest = 100": "highest = 9"}, also=also, num_steps=1)
    by_answer = {one.episode.example.answer: one for one in trained.scored}
    rewards = {answer: one.episode.total_reward for answer, one in by_answer.items()}
    assert (rewards["5"], rewards["7"], rewards["3"], rewards["9"]) == (1.0, 0.8, 0.8, 0.0)
    hints = {answer: "".join(text for own, text in _said(one.episode) if not own) for answer, one in by_answer.items()}
    assert hints["5"] == ""
    assert "It is higher." in hints["7"]
    assert "It is lower." in hints["3"]
    assert by_answer["9"].episode.finish_reason == "turns"
    assert by_answer["9"].episode.turns_T.max() == 3  # four turns
    for one in trained.scored:
        assert set(one.scores.positions_N) <= set(np.flatnonzero(one.episode.is_policy_T))
    assert trained.weights_change > 0


# A teacher that follows the student


def test_ema_teacher_scores_with_the_average_of_the_students_weights(examples: ExampleRuns, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(examples.student, folder / "start")
    settings = ["--engine.model", str(folder / "start"), "--engine.weights-folder", str(folder), *MAY_UPDATE_WEIGHTS]
    (tmp_path / "server").mkdir()
    put = {"decay = 0.99": "decay = 0.5", "every_steps = 10": "every_steps = 1", "/shared/weights": str(folder)}
    also = "[run]\ncheckpoint_every_steps = 1\nkeep_checkpoints = 3\n"
    with running_server(tmp_path / "server", *settings) as server:
        runs = replace(examples, address=server.address)
        trained = runs.train("ema_teacher", put=put, also=also + _reading_more(examples), num_steps=3)
    assert len({row["teacher_revision"] for row in trained.rows}) == 3
    average = load_file(examples.student / "model.safetensors")
    for step in (1, 2, 3):
        student = _weights(trained.directory, step=step)
        average = {name: 0.5 * average[name] + 0.5 * student[name] for name in average}
    served = load_file(folder / "ema-step-000003" / "model.safetensors")
    for name, weight in average.items():
        torch.testing.assert_close(served[name], weight)
    assert trained.weights_change > 0


def _reading_more(examples: ExampleRuns) -> str:
    """The teacher has the student's weights at first, and teaches by what it reads beside."""
    rows = [{"prompt": word, "teacher_prompt": f"Say it aloud: {word}"} for word in WORDS]
    return f"[data]\ntrain = {_lines(examples.folder / 'more.jsonl', rows)}\n"


# Offline


def _texts_by_prompt(scored: Sequence[ScoredEpisode]) -> list[tuple[object, tuple[int, ...]]]:
    return [(one.episode.example.prompt, one.episode.response_ids) for one in scored]


def test_offline_trains_on_the_episodes_that_another_run_kept(examples: ExampleRuns) -> None:
    also = '[weights]\nkind = "first_tokens"\noptions = { num_tokens = 32 }\n'
    first = examples.train("suffix_truncation", also="[run]\nsave_episodes = true\n" + also, run="first")
    put = {"runs/first/episodes.jsonl": str(first.directory / "episodes.jsonl")}
    again = examples.train("offline", put=put | {'"draw"': '"step"'}, also=also, run="again")
    assert _texts_by_prompt(again.scored) == _texts_by_prompt(first.scored)
    for name, weight in _weights(first.directory, step=2).items():
        torch.testing.assert_close(_weights(again.directory, step=2)[name], weight, rtol=1e-4, atol=1e-5)
    other_seed = "[run]\nseed = 8\n[data]\non_bad_example = 'skip'\n"
    drawn = examples.train("offline", put=put, also=other_seed, run="drawn")
    assert drawn.weights_change > 0
    assert set(_texts_by_prompt(drawn.scored)) <= set(_texts_by_prompt(first.scored))
