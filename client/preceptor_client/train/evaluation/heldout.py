"""One measurement on the held-out examples, as a row of metrics: greedy answers, and the loss against the teacher.

Knows nothing of when to measure, and moves no weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import TrainingStoppedError
from preceptor_client.train.evaluation.evaluate import Answer, PromptsOf, evaluate
from preceptor_client.train.evaluation.metric import HeldoutMetrics
from preceptor_client.train.learner.batches import micro_batches
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.weights import position_weights
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.record.views import view_teacher
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.scoring import Scorer, Scoring

MAX_SAVED_ANSWERS = 32
"""Held-out answers that a row of metrics keeps, for the report."""
_DRAWS_OF_NO_STEP = 0
"""Steps count from 1: every measurement draws alike, and like no step."""


class Heldout:
    """Measures one student again and again. Equal weights give equal numbers, as far as the teacher's are equal."""

    def __init__(
        self,
        student: Student,
        *,
        examples: Sequence[Example],
        config: RunConfig,
        loss: Loss,
        scorer: Scorer,
        agreement: Agreement,
        bad: BadExamples | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """`bad` decides what an example does that cannot be encoded, or that the teacher refuses; `stop` ends a
        measurement, with StopRequestedError."""
        self._metrics = HeldoutMetrics.of(config.evaluation.metrics)
        self._bad = BadExamples() if bad is None else bad
        self.examples = examples
        self._loss_of = loss
        self._student = student
        self._config = config
        self._stop = stop or StopRequest()
        once = config.rollout.model_copy(update={"responses_per_prompt": 1})
        self._rollouts = HfRollouts.of_run(student, config=config.model_copy(update={"rollout": once}))
        self._scoring = Scoring.of_run(
            scorer, config=config, agreement=agreement, vocabulary_size=student.vocabulary_size, stop=self._stop
        )

    def measure(self, *, step: int, prompts: PromptsOf) -> MetricRow:
        """The row. Where no example has an answer and there is something else to measure, `evaluation.loss` or
        `evaluation.metrics`, it holds no accuracy, and without metrics no answers. The teacher's prompts are only ever
        answered: what the teacher reads is its own business in the loss."""
        started = time.perf_counter()
        has_loss = self._config.evaluation.loss and prompts == "student"
        row: MetricRow = {
            "kind": "heldout" if prompts == "student" else "heldout_teacher",
            "step": step,
            "num_examples": len(self.examples),
        }
        with self._stop.checked_by(self._student.base):
            if not has_loss or self._metrics or self._has_answers:
                row |= self._answers(step, prompts=prompts)
            if has_loss:
                row |= self._loss(step)
        return row | {"seconds": time.perf_counter() - started}

    @property
    def _has_answers(self) -> bool:
        return any(example.answer is not None for example in self.examples)

    def _answers(self, step: int, *, prompts: PromptsOf) -> MetricRow:
        on_bad = self._bad.at_step(step, of="heldout")
        is_judged = self._has_answers or not self._metrics
        result = evaluate(
            self._student,
            self.examples,
            config=self._config.evaluation,
            prompts=prompts,
            on_bad=on_bad,
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

    def _loss(self, step: int) -> MetricRow:
        """Mean over the held-out examples, reduced as the run's loss is; None without a scored position."""
        refused = self._bad.at_step(step, of="heldout")
        try:
            for batch in self._rollouts.generate(self.examples, step=_DRAWS_OF_NO_STEP, on_bad=refused):
                self._scoring.submit(batch, name=f"heldout-{step}")
            scored = self._scoring.gather(on_refused=refused)
        finally:
            self._scoring.cancel()
        num_positions = sum(len(one.scores.positions_N) for one in scored)
        loss = self._mean_loss(scored) if num_positions else None
        if loss is not None and not math.isfinite(loss):
            raise TrainingStoppedError(f"the held-out loss after step {step} is {loss}: the student's numbers overflow")
        return {
            "loss": loss,
            "num_positions": num_positions,
            "scored_share": view_teacher(scored).scored_share,
            "num_refused_groups": refused.num_skipped,
        }

    @torch.no_grad()
    def _mean_loss(self, scored: Sequence[ScoredEpisode]) -> float:
        weights = position_weights(scored, reduction=self._config.objective.reduction)
        total = 0.0
        for indices in micro_batches(scored, size=self._config.optimizer.micro_batch_size):
            losses_N = self._loss_of.of([scored[index] for index in indices]).losses_N.double().cpu().numpy()
            total += float(losses_N @ np.concatenate([weights[index] for index in indices]))
        return total / sum(float(weights_N.sum()) for weights_N in weights)


def _saved(answer: Answer) -> dict[str, str | bool]:
    return {
        "prompt": answer.prompt,
        "expected": answer.expected,
        "answer": answer.answer,
        "is_correct": answer.is_correct,
    }
