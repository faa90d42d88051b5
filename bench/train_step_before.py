"""What bench.train_step_worker measures of commit 70b95bd: its modules stand elsewhere, and mypy does not see them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.train_step_case import LEARNING_RATE, MICRO_BATCH_SIZE, SavedRollout, read_step, scores_of, student_place

_TRAIN = "preceptor_client.train"


def _of(module: str, name: str) -> Any:  # Any: whatever that commit has there
    return getattr(importlib.import_module(f"{_TRAIN}.{module}"), name)


def accumulating(path: Path) -> tuple[Any, Any, Callable[[], float]]:  # Any: as above
    """The student's model, the optimizer, and what adds gradients up and returns the loss."""
    folder, gguf_file = student_place()
    config = _of("config", "StudentConfig")(model=folder, gguf_file=gguf_file, device="cpu")
    student = _of("student", "load_student")(config)
    scored = [
        _of("scoring", "ScoredRollout")(rollout=_rollout(one, slot), scores=scores_of(one))
        for slot, one in enumerate(read_step(path))
    ]
    optimizer = _of("config", "OptimizerConfig")(learning_rate=LEARNING_RATE, micro_batch_size=MICRO_BATCH_SIZE)
    update = _of("update", "Update")(student, config=optimizer, temperature=1.0)
    return student.model, update.optimizer, lambda: float(update.accumulate_gradients(scored)[1])


def _rollout(one: SavedRollout, slot: int) -> Any:  # Any: as above
    return _of("rollout", "Rollout")(
        example=_of("data", "Example")(index=slot, prompt=""),
        slot=slot,
        prompt_ids=tuple(one["prompt_ids"]),
        response_ids=tuple(one["response_ids"]),
        finish_reason="stop" if one["finish_reason"] == "stop" else "length",
    )
