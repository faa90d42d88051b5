"""A run's folder of two tasks and two teachers, made without a trainer: scored by fake teachers, in several turns.

`python -m tests.unit.client.train.several FOLDER` makes one to look at, with its report.
"""

# T = tokens of a response, M = teachers, N = scored positions

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from preceptor.wire import PositionStatus
from preceptor_client.train.data.examples import Example
from preceptor_client.train.instruments.breakdown import breakdown_rows, teacher_breakdown_rows
from preceptor_client.train.instruments.measures import measure, reward_measures
from preceptor_client.train.instruments.table import position_table, teacher_tables
from preceptor_client.train.learner.columns import StudentColumns
from preceptor_client.train.record.metrics import MetricRow, Metrics
from preceptor_client.train.record.rollout_log import RolloutLog, rollout_rows
from preceptor_client.train.report import read_run, write_report
from preceptor_client.train.rollout.episode import Episode, FinishReason, Segment
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.agreement import save_agreements
from preceptor_client.train.teacher.mixture import ids_to_ask_about, mixed
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores
from preceptor_client.train.teacher.support import teacher_rows
from preceptor_client.types import ResponseScores, StudentIds

from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.tiny import tiny_student

CONFIG = """[student]
model = "small"
[teacher]
address = ""
top_k = 8
temperature = 1.0
[teachers]
law = {address = "127.0.0.1:1", page = "http://127.0.0.1:8080"}
code = {address = "127.0.0.1:2", page = "http://127.0.0.1:8081", top_k = 4}
[tasks]
contracts = {weight = 2.0, teachers = {law = 0.75, code = 0.25}, teacher = {top_k = 16}}
tools = {weight = 1.0, teachers = ["code"]}
[run]
directory = "runs/several"
num_steps = 4
"""
SHARES = {"law": 0.75, "code": 0.25}
NUM_STEPS = 4
TOP_K = 8
STUDENT_WROTE, ENVIRONMENT_WROTE = "student", "environment"
Turn = tuple[str, str]
"""Who wrote it, and the text."""
CONTRACT: list[Turn] = [(STUDENT_WROTE, "The tenant may end the lease with a notice of three months.<|im_end|>")]
CALLS: list[Turn] = [
    (STUDENT_WROTE, 'search("capital of Norway")<|im_end|>'),
    (ENVIRONMENT_WROTE, "\n<|im_start|>tool\nOslo is the capital. Oslo is the capital.<|im_end|>\n"),
    (STUDENT_WROTE, 'search("population of Oslo")<|im_end|>'),
    (ENVIRONMENT_WROTE, "\n<|im_start|>tool\n717,710<|im_end|>\n"),
    (STUDENT_WROTE, "About 700,000.<|im_end|>"),
]


@dataclass(frozen=True, kw_only=True)
class Made:
    """What scores and writes."""

    student: Student
    teachers: dict[str, Student]

    def episode(
        self, turns: Sequence[Turn], *, task: str, slot: int, reward: float, finish_reason: FinishReason = "stop"
    ) -> Episode:
        """Its views are the student's own; `task` names its example's prompt too."""
        prompt_ids = tuple(self.student.encode_prompt(f"A question about {task}"))
        ids = [tuple(self.student.tokenizer.encode(text, add_special_tokens=False)) for _, text in turns]
        whole = _scores(self.student, prompt_ids, [token for turn in ids for token in turn])
        assert whole.entropies_N is not None
        segments, start = [], 0
        for (who, _), turn in zip(turns, ids, strict=True):
            end = start + len(turn)
            view = StudentView(logprobs_T=whole.sampled_logprobs_N[start:end], entropies_T=whole.entropies_N[start:end])
            is_policy = who == STUDENT_WROTE
            segments.append(Segment(ids=turn, is_policy=is_policy, student=view if is_policy else None))
            start = end
        return Episode(
            example=Example(index=slot, prompt=task, task=task),
            slot=slot,
            prompt_ids=prompt_ids,
            segments=tuple(segments),
            reward=reward,
            finish_reason=finish_reason,
        )

    def scored(self, episode: Episode, *, by: Sequence[str]) -> ScoredEpisode:
        """By the mixture of these teachers, at the tokens that the student wrote."""
        first, *others = by
        answers = {first: self._asked(first, episode)}
        asked_TC = ids_to_ask_about(answers[first], student_ids_TC=None)
        for name in others:
            answers[name] = self._asked(name, episode, candidate_ids_TC=asked_TC)
        shares = np.array([SHARES[name] for name in by])
        shares_MN = np.tile((shares / shares.sum())[:, None], (1, len(answers[first].positions_N)))
        together = [answers[name] for name in others]
        return ScoredEpisode(
            episode=episode,
            scores=mixed(answers[first], together, shares_MN=shares_MN) if others else answers[first],
            teacher="tiny",
            teacher_prompt_ids=np.array(episode.prompt_ids, np.int64),
            task=episode.task,
            by_teacher=tuple(
                TeacherScores(
                    name=name,
                    teacher=f"{name}-served",
                    scores=answers[name],
                    support=teacher_rows(answers[name]).finish(
                        np.array(episode.response_ids)[answers[name].positions_N]
                    ),
                    shares_N=shares_N,
                    revision="1",
                    prompt_ids=np.array([*episode.prompt_ids, len(name)], np.int64),
                )
                for name, shares_N in zip(by, shares_MN, strict=True)
            ),
        )

    def _asked(
        self,
        name: str,
        episode: Episode,
        *,
        candidate_ids_TC: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None = None,
    ) -> ResponseScores:
        mask_T = episode.score_mask_T
        scorer = FakeScorer(
            self.teachers[name],
            name=name,
            status_of=lambda position: PositionStatus.OK if mask_T[position] else PositionStatus.EXCLUDED,
        )
        future = scorer.submit(
            StudentIds(list(episode.prompt_ids)),
            [episode.response_ids],
            top_k=TOP_K,
            candidate_ids=None if candidate_ids_TC is None else [candidate_ids_TC],
        )
        return future.result().responses[0]


def _scores(model: Student, prompt_ids: Sequence[int], ids: Sequence[int]) -> ResponseScores:
    return FakeScorer(model).submit(StudentIds(list(prompt_ids)), [ids], top_k=2).result().responses[0]


def made() -> Made:
    return Made(student=tiny_student(seed=0), teachers={"law": tiny_student(seed=1), "code": tiny_student(seed=2)})


def step_of(parts: Made, step: int) -> list[ScoredEpisode]:
    """One prompt of each task; the rewards rise with the steps."""
    return [
        parts.scored(parts.episode(CONTRACT, task="contracts", slot=0, reward=0.25 * step), by=("law", "code")),
        parts.scored(parts.episode(CALLS, task="tools", slot=1, reward=0.5, finish_reason="turns"), by=("code",)),
    ]


def columns_of(scored: Sequence[ScoredEpisode], *, step: int) -> list[StudentColumns]:
    """A loss that falls with the steps; the rest is the same everywhere."""
    return [
        StudentColumns(losses_N=ones_N / np.float32(step), masses_N=ones_N * 0.75, overlaps_N=ones_N * 0.5)
        for ones_N in (np.ones(len(one.scores.positions_N), np.float32) for one in scored)
    ]


def write_several(directory: Path) -> Path:
    """The folder, without a report."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(CONFIG)
    parts = made()
    save_agreements(directory, {name: agreement_with(teacher) for name, teacher in parts.teachers.items()})
    with Metrics(directory, step=0) as metrics, RolloutLog(directory, step=0) as log:
        for row in heldout_rows(0):
            metrics.write(row)
        for step in range(1, NUM_STEPS + 1):
            scored = step_of(parts, step)
            columns = columns_of(scored, step=step)
            log.write(rollout_rows(step, scored, columns, decode=parts.student.decode_all, num_rollouts=4))
            for row in _rows(scored, columns, step=step, ends=parts.student.end_token_ids):
                metrics.write(row)
        for row in heldout_rows(NUM_STEPS):
            metrics.write(row)
    return directory


def _rows(
    scored: Sequence[ScoredEpisode], columns: Sequence[StudentColumns], *, step: int, ends: Sequence[int]
) -> list[MetricRow]:
    table = position_table(scored, columns, end_token_ids=ends)
    own: MetricRow = {"kind": "step", "step": step, **measure(table), **reward_measures(table), "step_seconds": 0.5}
    tables = teacher_tables(scored, columns, end_token_ids=ends)
    return [*breakdown_rows(table, step=step), *teacher_breakdown_rows(tables, step=step), own]


def heldout_rows(step: int) -> list[MetricRow]:
    """One task has answers and a loss, the other rewards and a metric of the user's."""
    return [
        {
            "kind": "heldout",
            "step": step,
            "task": "contracts",
            "num_examples": 4,
            "num_correct": 1 + step // 2,
            "accuracy": (1 + step // 2) / 4,
            "mean_answer_length": 8.0,
            "answers": [{"prompt": "Who ends it?", "expected": "tenant", "answer": "The tenant", "is_correct": True}],
            "loss": 2.0 - step / 4,
            "num_positions": 80,
            "scored_share": 1.0,
            "seconds": 0.5,
        },
        {
            "kind": "heldout",
            "step": step,
            "task": "tools",
            "num_examples": 3,
            "mean_reward": 0.25 + step / 8,
            "calls_per_episode": 2.5,
            "num_refused_groups": 0,
            "seconds": 0.5,
        },
    ]


if __name__ == "__main__":
    folder = write_several(Path(sys.argv[1]))
    write_report(folder / "report.html", run=read_run(folder).summary)
