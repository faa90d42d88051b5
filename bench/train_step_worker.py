"""The training half of a step in one tree of the client: python -m bench.train_step_worker before|now STEP_FILE

bench.train_step asks it. Which client is measured is a matter of PYTHONPATH, so this file runs with both: "before" is
the interface of commit 70b95bd, "now" that of this tree.
"""

# N = scored positions, T = tokens of the response

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.learner import Update
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.types import ResponseScores

from bench.train_step_data import SavedRollout, student_config
from bench.workers import Answer, Request, serve

OPTIMIZER = OptimizerConfig(learning_rate=2e-5, micro_batch_size=16)
"""The demo's."""


def scored_rollouts(path: Path, *, is_before: bool) -> list[ScoredEpisode]:
    """The saved step as the client's own types."""
    saved: list[SavedRollout] = json.loads(path.read_text())
    return [
        ScoredEpisode(episode=_rollout(one, slot, is_before=is_before), scores=_scores(one))
        for slot, one in enumerate(saved)
    ]


def accumulating(
    student: Student, scored: list[ScoredEpisode], *, is_before: bool
) -> tuple[Update, Callable[[], float]]:
    """What owns the gradients, and what adds them up and returns the loss."""
    kind: Any = Update  # Any: its interface differs between the two trees
    if is_before:
        update = kind(student, config=OPTIMIZER, temperature=1.0)
        return update, lambda: float(update.accumulate_gradients(scored)[1])
    from preceptor_client.train.learner.loss import Loss
    from preceptor_client.train.objective.config import ObjectiveConfig
    from preceptor_client.train.objective.shaping import weighted_mean
    from preceptor_client.train.objective.weights import position_weights

    loss = Loss(student, config=ObjectiveConfig(), temperature=1.0)
    update = kind(student, config=OPTIMIZER, loss=loss, temperature=1.0)
    terms = weighted_mean(position_weights(scored, reduction="position_mean"))
    return update, lambda: float(update.accumulate_gradients(scored, terms=terms).loss)


class Measuring:
    """Answers with seconds, loss and norm of the gradient of one forward, loss and backward."""

    def __init__(self, tree: str, path: Path) -> None:
        if tree not in ("before", "now"):
            raise ValueError(f"no tree {tree!r}: before or now")
        is_before = tree == "before"
        self._student = load_student(student_config())
        scored = scored_rollouts(path, is_before=is_before)
        self._update, self._accumulate = accumulating(self._student, scored, is_before=is_before)
        self._accumulate()  # warms up

    def answer(self, _: Request) -> Answer:
        self._update.optimizer.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = self._accumulate()
        seconds = time.perf_counter() - started
        gradients = [p.grad for p in self._student.model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        return {"seconds": seconds, "loss": loss, "gradient_norm": norm}


def _rollout(one: SavedRollout, slot: int, *, is_before: bool) -> Episode:
    view: dict[str, Any] = {}  # Any: before, a rollout had no such field
    if not is_before:
        from preceptor_client.train.student.view import StudentView

        view["student"] = StudentView(
            logprobs_T=_floats(one["student_logprobs"]), entropies_T=_floats(one["student_entropies"])
        )
    return single_turn(
        example=Example(index=slot, prompt=""),
        slot=slot,
        prompt_ids=tuple(one["prompt_ids"]),
        response_ids=tuple(one["response_ids"]),
        finish_reason="stop" if one["finish_reason"] == "stop" else "length",
        **view,
    )


def _scores(one: SavedRollout) -> ResponseScores:
    """Every token has a score."""
    num = len(one["response_ids"])
    return ResponseScores(
        status_T=np.ones(num, np.uint8),
        positions_N=np.arange(num),
        support_ids_NK=np.array(one["support_ids"], np.int64),
        support_logprobs_NK=_floats(one["support_logprobs"]),
        sampled_logprobs_N=_floats(one["sampled_logprobs"]),
        log_tail_mass_N=_floats(one["log_tail_masses"]),
        entropies_N=_floats(one["entropies"]),
    )


def _floats(numbers: list[float] | list[list[float]]) -> np.ndarray[Any, np.dtype[np.float32]]:  # Any: one or two axes
    return np.array(numbers, np.float32)


def main() -> None:
    torch.manual_seed(0)
    tree, path = sys.argv[1:]
    serve(lambda: Measuring(tree, Path(path)).answer)


if __name__ == "__main__":
    main()
