"""Trains on the beginning of each response only: python examples/suffix_truncation.py @ train.toml

Far into a long response the prefix is the student's own, and a teacher says less that is worth learning (docs:
instruments.md, failure 2). Weights are plain arrays, one per rollout and one entry per scored position: any rule that
can be written with numpy goes where `first_tokens` stands. The loss stays a mean, sum(w * loss) / sum(w).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from preceptor.settings import load_settings
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train
from preceptor_client.train.teacher.scored import ScoredEpisode

NUM_TOKENS = 32


def first_tokens(scored: Sequence[ScoredEpisode]) -> list[npt.NDArray[np.float64]]:
    """1 for the first NUM_TOKENS tokens of each response, 0 after them."""
    return [(one.scores.positions_N < NUM_TOKENS).astype(np.float64) for one in scored]


if __name__ == "__main__":
    train(load_settings(RunConfig, sys.argv[1:], program="suffix_truncation"), weigh=first_tokens)
