"""Measures the held-out examples of a task: greedy answers, rewards, the loss against the teacher.

Knows nothing of when to measure, and moves no weights.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from preceptor_client.train.data.bad_examples import BadExamples, Skipping
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError, TrainingStoppedError
from preceptor_client.train.evaluation.config import EvaluationConfig
from preceptor_client.train.evaluation.evaluate import Answer, PromptsOf, evaluate
from preceptor_client.train.evaluation.metric import HeldoutMetrics
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.rollout.engine import OnBad
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.episode_index import episode_rewards
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.failed_groups import FailureLimit, GroupCount
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scoring import Scoring
from preceptor_client.train.teacher.views import view_teacher

MAX_SAVED_ANSWERS = 32
"""Held-out answers that a row of metrics keeps, for the report."""

RollOut = Callable[[Sequence[Example], OnBad], Iterator[list[Episode]]]
"""Rolls every example out once, by the same draws every time."""

_log = logging.getLogger(__name__)


class _Bad:
    """What goes wrong in one measurement: it goes on without a failed episode, and examples are as in a step."""

    def __init__(self, skipping: Skipping, *, step: int) -> None:
        self._skipping = skipping
        self._step = step
        self.num_failed = 0

    def __call__(self, error: InvalidDataError | InvalidEpisodeError) -> None:
        if isinstance(error, InvalidDataError):
            self._skipping(error)
            return
        self.num_failed += 1
        _log.warning("held-out episode failed: step=%d error=%s", self._step, error)


class MeanLoss(Protocol):
    """The loss of scored episodes, reduced as the run's is."""

    def mean(self, scored: Sequence[ScoredEpisode], *, step: int) -> float:
        """Nats; makes no gradients."""
        ...


class Heldout:
    """Measures one student again and again. Equal weights give equal numbers, as far as the teacher's are equal."""

    def __init__(
        self,
        student: Student,
        *,
        examples: Sequence[Example],
        config: EvaluationConfig,
        roll_out: RollOut,
        scoring: Scoring,
        loss: MeanLoss,
        is_answered: bool = True,
        has_rewards: bool = False,
        task: str = "",
        source: str = "heldout",
        bad: BadExamples | None = None,
        limit: FailureLimit | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`is_answered` is False where the student talks to an environment; `source` names the examples to `bad`, which
        decides what an example does that cannot be encoded, or that the teacher refuses; `limit` says how many groups
        a teacher may fail on; `stop` ends a measurement, with StopRequestedError."""
        self.examples = examples
        self.task = task
        self._student = student
        self._config = config
        self._roll_out = roll_out
        self._scoring = scoring
        self._loss_of = loss
        self._is_answered = is_answered
        self._metrics = HeldoutMetrics.of(config.metrics)
        self._has_rewards = has_rewards
        self._source = source
        self._bad = BadExamples() if bad is None else bad
        self._limit = limit or FailureLimit(max_share=0.0)
        self._stop = stop or StopRequest()

    def measure(self, *, step: int, prompts: PromptsOf) -> MetricRow:
        """The row. Where no example has an answer and there is something else to measure, it holds no accuracy, and
        without metrics no answers. The teacher's prompts are only ever answered: what the teacher reads is its own
        business in the loss."""
        started = time.perf_counter()
        rolls_out = (self._config.loss or self._has_rewards) and prompts == "student"
        row: MetricRow = {
            "kind": "heldout" if prompts == "student" else "heldout_teacher",
            "step": step,
            "num_examples": len(self.examples),
        }
        if self.task:
            row["task"] = self.task
        with self._stop.checked_by(self._student.base):
            if self._is_answered and (not rolls_out or self._metrics or self._has_answers):
                row |= self._answers(step, prompts=prompts)
            if rolls_out:
                row |= self._rolled_out(step)
        return row | {"seconds": time.perf_counter() - started}

    @property
    def _has_answers(self) -> bool:
        return any(example.answer is not None for example in self.examples)

    def _answers(self, step: int, *, prompts: PromptsOf) -> MetricRow:
        is_judged = self._has_answers or not self._metrics
        result = evaluate(
            self._student,
            self.examples,
            config=self._config,
            prompts=prompts,
            on_bad=self._bad.at_step(step, of=self._source),
            needs_answers=is_judged,
        )
        judged: MetricRow = {"accuracy": result.accuracy, "num_correct": result.num_correct} if is_judged else {}
        return {
            "num_examples": len(result.answers),
            **judged,
            "mean_answer_length": result.mean_answer_length,
            "answers": [_saved(answer) for answer in result.answers[:MAX_SAVED_ANSWERS]],
            **self._metrics.measure(result.answers),
        }

    def _rolled_out(self, step: int) -> MetricRow:
        refused = self._bad.at_step(step, of=self._source)
        bad = _Bad(refused, step=step)
        rewards: list[float] = []
        groups = GroupCount()
        try:
            for batch in self._roll_out(self.examples, bad):
                rewards += [reward for reward in episode_rewards(batch) if reward is not None]
                if self._config.loss:
                    self._scoring.submit(batch, name=f"heldout-{step}")
                    groups.add(batch)
            row = self._scored(step, refused, groups=groups) if self._config.loss else {}
        finally:
            self._scoring.cancel()
        if self._has_rewards:
            row["mean_reward"] = sum(rewards) / len(rewards) if rewards else None
        return row | {"num_refused_groups": refused.num_skipped, "num_failed_episodes": bad.num_failed}

    def _scored(self, step: int, refused: Skipping, *, groups: GroupCount) -> MetricRow:
        """The loss of what the teachers answered. Raises TrainingStoppedError where they failed on too much."""
        scored = self._scoring.gather(on_refused=refused, on_failed=groups.fail)
        for one in groups.failed:
            _log.warning(
                "held-out group failed: step=%d example=%s teacher=%s reason=%s incident=%r",
                *(step, one.example, one.teacher, one.error.reason, one.error.incident),
            )
        if excess := self._limit.excess(groups.outcomes):
            raise TrainingStoppedError(f"held-out examples after step {step}: {excess}; the first: {groups.failed[0]}")
        return self._loss(step, scored) | {"failed_groups": len(groups.failed)}

    def _loss(self, step: int, scored: Sequence[ScoredEpisode]) -> MetricRow:
        """Reduced as the run's loss is; None without a scored position."""
        num_positions = sum(len(one.scores.positions_N) for one in scored)
        loss = self._loss_of.mean(scored, step=step) if num_positions else None
        if loss is not None and not math.isfinite(loss):
            raise TrainingStoppedError(f"the held-out loss after step {step} is {loss}: the student's numbers overflow")
        return {"loss": loss, "num_positions": num_positions, "scored_share": view_teacher(scored).scored_share}


def _saved(answer: Answer) -> dict[str, str | bool]:
    return {
        "prompt": answer.prompt,
        "expected": answer.expected,
        "answer": answer.answer,
        "is_correct": answer.is_correct,
    }
