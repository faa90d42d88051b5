"""What stands in examples/ is short, says what it is, and does it: in real runs against real servers."""

from __future__ import annotations

import ast
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor_client.extend import Example, Messages, ScoredEpisode, Turn, prompt_messages
from transformers import LlamaForCausalLM

from tests.integration.example_runs import (
    EXAMPLES,
    ExampleRuns,
    TrainedExample,
    example_file,
    example_files,
    settings_text,
)
from tests.integration.servers import RunningServer
from tests.tiny import tiny_tokenizer

# N = scored positions, K = support size, V = vocabulary

MAX_LINES = 40
CALLS_TRAIN = {"suffix_truncation.py"}
"""Programs of their own, which import what runs a training besides."""


@pytest.mark.parametrize("path", example_files(), ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_to_set(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert settings_text(path)
    words = text.split("[")[0]
    assert "arXiv" in words or "no paper" in words, "name the paper, or say that there is none"


@pytest.mark.parametrize("path", example_files(), ids=lambda path: path.name)
def test_the_readme_and_a_test_know_the_example(path: Path) -> None:
    assert f"]({path.name})" in (EXAMPLES / "README.md").read_text()
    tests = [file.read_text() for file in Path(__file__).parent.glob("test_examples*.py")]
    assert any(f'train("{path.stem}"' in text for text in tests), "no test trains it"


@pytest.mark.parametrize("path", [path for path in example_files() if path.suffix == ".py"], ids=lambda path: path.name)
def test_an_example_needs_at_most_one_import_of_ours(path: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [str(node.module) for node in imports if str(node.module).startswith("preceptor")]
    assert ours in ([], ["preceptor_client.extend"]) or path.name in CALLS_TRAIN  # some are settings alone


def test_suffix_truncation_trains_on_the_first_tokens_alone(examples: ExampleRuns) -> None:
    trained = examples.train("suffix_truncation", put={"num_tokens = 32": "num_tokens = 3"})
    assert trained.weights_change > 0
    for step, row in zip(trained.steps, trained.rows, strict=True):
        assert row["num_weighted_positions"] == sum(min(len(one.scores.positions_N), 3) for one in step.scored)
        assert row["num_positions"] == sum(len(one.scores.positions_N) for one in step.scored)


class ThreeTurns:
    """An environment that has the student say something three times."""

    def __init__(self) -> None:
        self._num_turns = 0

    async def reset(self, example: Example) -> Messages:
        return prompt_messages(example)

    async def step(self, text: str) -> Turn:
        self._num_turns += 1
        return Turn(messages=[{"role": "user", "content": "Go on"}], done=self._num_turns == 3)


def _gaps(one: ScoredEpisode) -> list[float]:
    """log q - log p of each scored token."""
    pairs = zip(one.scores.positions_N, one.scores.sampled_logprobs_N, strict=True)
    return [float(logprob) - float(one.episode.student.logprobs_T[place]) for place, logprob in pairs]


def _advantage(one: ScoredEpisode, scored: Sequence[ScoredEpisode]) -> float:
    """GRPO's of a response, among those to the same prompt in the same step."""
    rewards = [float(other.episode.total_reward or 0) for other in scored if other.episode.slot == one.episode.slot]
    assert len(rewards) == 4
    spread = statistics.stdev(rewards) + 1e-6
    return (float(one.episode.total_reward or 0) - statistics.fmean(rewards)) / spread


def _check_credit(trained: TrainedExample, expected: Callable[[float, list[float], list[int]], list[float]]) -> None:
    """`expected` makes a response's credit of its advantage, of its gaps and of the turns of its tokens."""
    assert trained.weights_change > 0
    advantages = []
    for step in trained.steps:
        for one in step.scored:
            assert one.advantages_N is not None
            assert one.episode.part == 0
            advantages.append(_advantage(one, step.scored))
            turns = [int(one.episode.turns_T[place]) for place in one.scores.positions_N]
            found = one.advantages_N.tolist()
            assert found == pytest.approx(expected(advantages[-1], _gaps(one), turns), rel=1e-5, abs=1e-5)
    assert min(advantages) < 0 < max(advantages)
    assert all(row["credit_loss"] == row["loss"] for row in trained.rows)


THREE_TURNS = f"""
environment.kind = "{__name__}:ThreeTurns"
rollout.max_new_tokens = 5
"""


def _sod(advantage: float, gaps: list[float], turns: list[int]) -> list[float]:
    by_turn = [[abs(gap) for gap, turn in zip(gaps, turns, strict=True) if turn == k] for k in range(max(turns) + 1)]
    distances = [statistics.fmean(of_turn) + 1e-6 for of_turn in by_turn]
    ratios = [before / after for before, after in pairwise(distances)]
    weights = [min(math.prod(ratios[:k]), 1.2) for k in range(len(distances))]
    return [advantage + weights[turn] * gap for gap, turn in zip(gaps, turns, strict=True)]


def test_sod_adds_to_the_advantage_the_gap_weighed_by_turn(examples: ExampleRuns) -> None:
    trained = examples.train("sod", also=THREE_TURNS)
    assert {int(turn) for one in trained.scored for turn in one.turns_N} == {0, 1, 2}
    _check_credit(trained, _sod)


def test_sod_without_grpo_is_the_teachers_half_and_needs_no_rewards(examples: ExampleRuns) -> None:
    also = "rewards = []\ncredit.options.grpo = false"
    trained = examples.train("sod", also=THREE_TURNS + also)
    for one in trained.scored:
        assert one.advantages_N is not None
        turns = [int(turn) for turn in one.turns_N]
        assert one.advantages_N.tolist() == pytest.approx(_sod(0.0, _gaps(one), turns), rel=1e-5, abs=1e-5)
    assert trained.weights_change > 0


def test_rlsd_scales_the_advantage_by_what_the_teacher_thinks_of_the_token(examples: ExampleRuns) -> None:
    def rlsd(advantage: float, gaps: list[float], turns: list[int]) -> list[float]:
        ratios = [math.exp(math.copysign(gap, advantage * gap)) for gap in gaps]
        return [advantage * (0.5 + 0.5 * min(max(ratio, 0.8), 1.2)) for ratio in ratios]

    _check_credit(examples.train("rlsd"), rlsd)


def test_ophsd_shows_the_teacher_the_shortest_right_answer_of_the_step(examples: ExampleRuns) -> None:
    trained, tokenizer = examples.train("ophsd"), tiny_tokenizer()
    assert trained.weights_change > 0
    num_helped = 0
    for step in trained.steps:
        for one in step.scored:
            group = [other.episode for other in step.scored if other.episode.slot == one.episode.slot]
            texts = {tokenizer.decode(list(each.response_ids), skip_special_tokens=True): each.reward for each in group}
            right = [text for text, reward in texts.items() if reward]
            assert one.teacher_prompt_ids is not None
            if right:
                num_helped += 1
                shortest = min(right, key=len)
                assert f"\n\nA right answer is: {shortest}\n\n" in tokenizer.decode(one.teacher_prompt_ids)
            else:
                assert tuple(one.teacher_prompt_ids) == one.episode.prompt_ids
    assert num_helped > 0


def test_prefix_teach_cuts_responses_where_the_margin_drops(examples: ExampleRuns) -> None:
    # A tiny teacher's margins are noise, in which a drop is rare: so sentences are short, and many.
    ends = "".join(map(chr, range(33, 110))) + "\ufffd"
    also = f"""
    rollout = {{ max_new_tokens = 60, prompts_per_step = 4, batch_size = 16 }}
    weights.options.ends = {json.dumps(ends)}
    """
    trained = examples.train("prefix_teach", also=also, num_steps=4)
    assert trained.weights_change > 0
    num_cut = 0
    for step, row in zip(trained.steps, trained.rows, strict=True):
        kept = [_num_kept(one, ends=ends) for one in step.scored]
        assert row["num_weighted_positions"] == sum(kept)
        num_cut += sum(num < len(one.scores.positions_N) for num, one in zip(kept, step.scored, strict=True))
    assert 0 < num_cut < len(trained.scored)


def _num_kept(one: ScoredEpisode, *, ends: str) -> int:
    """Tokens before the drop, by comparing the BIC of every model."""
    tokenizer = tiny_tokenizer()
    assert one.scores.candidate_logprobs_NC is not None
    sentences: list[list[float]] = [[]]
    for token, logprobs_C in zip(one.sampled_ids_N, one.scores.candidate_logprobs_NC, strict=True):
        first, second, *_ = sorted((math.exp(logprob) for logprob in logprobs_C), reverse=True)
        sentences[-1].append(first - second)
        if tokenizer.decode([token])[-1:] in list(ends):
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    means = [statistics.fmean(sentence) for sentence in sentences]

    def bic(*levels: list[float]) -> float:
        error = sum((value - statistics.fmean(level)) ** 2 for level in levels for value in level)
        return len(means) * math.log((error + 1e-12) / len(means)) + (2 * len(levels) - 1) * math.log(len(means))

    best, num = bic(means), len(means)
    for at in range(2, len(means) - 1):
        before, after = means[:at], means[at:]
        if statistics.fmean(before) > statistics.fmean(after) and bic(before, after) < best:
            best, num = bic(before, after), at
    return sum(len(sentence) for sentence in sentences[:num])


def _student_logprobs(folder: Path, one: ScoredEpisode) -> torch.Tensor:
    """Of a model before any training, at the scored positions, over the whole vocabulary: [N, V] in float64."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.tensor([[*one.episode.prompt_ids, *one.episode.response_ids]])
    with torch.no_grad():
        logits_TV = model(ids).logits[0, len(one.episode.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits_TV[torch.from_numpy(one.scores.positions_N)], dim=1)


def test_mad_opd_adds_up_the_divergences_by_confidence(
    examples: ExampleRuns, hf_server: RunningServer, other_hf_server: RunningServer
) -> None:
    put = {"teacher-a:50051": hf_server.address, "teacher-b:50051": other_hf_server.address}
    trained = examples.train("mad_opd", put=put)
    assert trained.weights_change > 0
    losses: list[float] = []
    for one in trained.steps[0].scored:
        student_NV = _student_logprobs(examples.student, one)
        by_name = {teacher.name: teacher for teacher in one.by_teacher}
        assert list(by_name) == ["first", "second"]
        sure = [
            float(np.exp(of.scores.support_logprobs_NK.astype(np.float64)).max(axis=1).mean()) for of in one.by_teacher
        ]
        shares = np.exp(sure) / np.exp(sure).sum()
        assert sure[0] != pytest.approx(sure[1], rel=1e-3)
        total_N = torch.zeros(len(student_NV), dtype=torch.float64)
        for share, teacher in zip(shares, one.by_teacher, strict=True):
            np.testing.assert_allclose(teacher.shares_N, share, rtol=1e-5)
            ids_NK = torch.from_numpy(teacher.support.ids_NK.astype(np.int64))
            p_NK = torch.softmax(student_NV.gather(1, ids_NK), dim=1)
            q_NK = torch.softmax(torch.from_numpy(teacher.support.teacher_logprobs_NK), dim=1)
            m_NK = (p_NK + q_NK) / 2
            total_N += share * ((p_NK * (p_NK / m_NK).log() + q_NK * (q_NK / m_NK).log()) / 2).sum(dim=1)
        losses += total_N.tolist()
    assert trained.rows[0]["loss"] == pytest.approx(statistics.fmean(losses), rel=1e-4)


def test_extrapolation_goes_beyond_an_unsure_teacher_alone_and_further_by_and_by(examples: ExampleRuns) -> None:
    also = """
    [objective.extrapolation_rule_options]
    strength = 3.0
    num_steps = 4
    max_probability = 0.2
    min_entropy = 2.0
    """
    trained = examples.train("extrapolation", also=also)
    assert trained.weights_change > 0
    for step, risen in zip(trained.steps, (1.5, 2.0), strict=True):
        strengths: list[float] = []
        for one in step.scored:
            assert one.strengths_N is not None
            assert one.scores.entropies_N is not None
            top_N = one.scores.support_logprobs_NK.max(axis=1)
            pairs = zip(top_N.tolist(), one.scores.entropies_N.tolist(), strict=True)
            expected = [1.0 if math.exp(top) > 0.2 or entropy < 2.0 else risen for top, entropy in pairs]
            assert one.strengths_N.tolist() == expected
            strengths += expected
        assert set(strengths) == {1.0, risen}
    losses: list[float] = []
    for one in trained.steps[0].scored:  # the student is still the one that the target starts from
        ids_NK = torch.from_numpy(one.support.ids_NK.astype(np.int64))
        start_NK = _student_logprobs(examples.student, one).gather(1, ids_NK)
        strength_N1 = torch.from_numpy(one.strengths_N)[:, None]
        target_NK = strength_N1 * torch.from_numpy(one.support.teacher_logprobs_NK) - (strength_N1 - 1) * start_NK
        log_p_NK, log_t_NK = torch.log_softmax(start_NK, dim=1), torch.log_softmax(target_NK, dim=1)
        losses += (log_p_NK.exp() * (log_p_NK - log_t_NK)).sum(dim=1).tolist()
    assert trained.rows[0]["loss"] == pytest.approx(statistics.fmean(losses), rel=1e-4)


def test_mopd_gives_every_task_its_teacher_and_its_share(
    examples: ExampleRuns, hf_server: RunningServer, other_hf_server: RunningServer, tmp_path: Path
) -> None:
    put = {"teacher-a:50051": hf_server.address, "teacher-b:50051": other_hf_server.address}
    for task in ("math", "code"):
        put[f"{task}.jsonl"] = str(tmp_path / f"{task}.jsonl")
        Path(put[f"{task}.jsonl"]).write_text("".join(json.dumps({"prompt": f"{task} {i}"}) + "\n" for i in range(5)))
    trained = examples.train("mopd", put=put, also="rollout.prompts_per_step = 3")
    assert trained.weights_change > 0
    teachers = {"math": "mathematician", "code": "programmer"}
    assert all([of.name for of in one.by_teacher] == [teachers[one.task]] for one in trained.scored)
    assert all(str(one.episode.example.prompt).startswith(one.task) for one in trained.scored)
    revisions = {task: {one.revision for one in trained.scored if one.task == task} for task in teachers}
    assert len(revisions["math"]) == len(revisions["code"]) == 1
    assert revisions["math"] != revisions["code"]
    for step in trained.steps:
        assert [one.task for one in step.scored] == ["math"] * 8 + ["code"] * 4
    lengths = {
        task: max(len(one.episode.response_ids) for one in trained.scored if one.task == task) for task in teachers
    }
    assert lengths == {"math": 12, "code": 24}


def _run_as_a_user(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )


def test_the_readmes_command_trains_a_copied_example(examples: ExampleRuns) -> None:
    run = examples.run_file(num_steps=1)
    (run.parent / "sod.py").write_text(example_file("sod").read_text())
    (run.parent / "sod.toml").write_text(settings_text(example_file("sod")))
    done = _run_as_a_user(run.parent, "-m", "preceptor_client.cli", "train", "@", "run.toml", "@", "sod.toml")
    assert done.returncode == 0, done.stderr
    assert 'kind = "sod:Sod"' in (run.parent / "run" / "config.toml").read_text()
    assert (run.parent / "run" / "report.html").exists()


def test_an_example_with_a_program_of_its_own_runs(examples: ExampleRuns) -> None:
    run = examples.run_file(num_steps=1)
    (run.parent / "suffix_truncation.py").write_text(example_file("suffix_truncation").read_text())
    also = run.parent / "long.toml"
    also.write_text("rollout.max_new_tokens = 40")
    done = _run_as_a_user(run.parent, "suffix_truncation.py", "@", "run.toml", "@", "long.toml")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (run.parent / "run" / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["kind"] == "step"]
    assert 0 < row["num_weighted_positions"] < row["num_positions"]
