"""Trains on the first 32 tokens of each response only.

Far into a long response the prefix is the student's own, and a teacher says less that is worth learning there (arXiv
2603.25562; docs/instruments.md, failure 2). Weights are arrays, one per episode with an entry for each scored position;
the loss stays a mean, sum(w * loss) / sum(w). The settings use the built-in rule. A program of your own can hand
`train` any function instead, as below: python suffix_truncation.py @ run.toml

Settings:

    [weights]
    kind = "first_tokens"
    options = { num_tokens = 32 }
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from preceptor.settings import load_settings
from preceptor_client.extend import ScoredEpisode
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.train import train

NUM_TOKENS = 32


def first_tokens(scored: Sequence[ScoredEpisode]) -> list[npt.NDArray[np.float64]]:
    """1 for the first NUM_TOKENS tokens of each response, 0 after them."""
    return [(one.scores.positions_N < NUM_TOKENS).astype(np.float64) for one in scored]


if __name__ == "__main__":
    train(load_settings(RunConfig, sys.argv[1:], program="suffix_truncation"), weigh=first_tokens)
