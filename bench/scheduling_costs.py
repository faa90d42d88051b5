"""What supports and candidates cost beside tokens, in the hf engine: python -m bench.scheduling_costs

SmolLM2-135M in fp32 on one core, one response of 512 scored tokens; processor time, the least of four rounds. The
constants of server/preceptor_server/scheduling/costs.py come from here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.types import ResponseToScore, ScoreGroup

from bench.engine import GGUF_FILE, VOCABULARY_SIZE, smollm2_folder

NUM_TOKENS = 512
ROUNDS = 4
CASES = {
    "K = 2": (2, 0),
    "K = 32": (32, 0),
    "K = 128": (128, 0),
    "K = 1024": (1024, 0),
    "K = 32, 256 candidates": (32, 256),
    "K = 32, 1,023 candidates": (32, 1023),
}


def group_of(top_k: int, num_candidates: int) -> ScoreGroup:
    """One response after a prompt of one token."""
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, VOCABULARY_SIZE, (NUM_TOKENS, num_candidates)) if num_candidates else None
    response = ResponseToScore(
        ids_T=rng.integers(0, VOCABULARY_SIZE, NUM_TOKENS),
        score_mask_T=np.ones(NUM_TOKENS, np.bool_),
        candidate_ids_TC=candidates,
    )
    prompt_ids_P = rng.integers(0, VOCABULARY_SIZE, 1)
    return ScoreGroup(prompt_ids_P=prompt_ids_P, responses=(response,), top_k=top_k, temperature=1.0)


def main() -> int:
    """Prints seconds, and what a support entry and a candidate cost in tokens."""
    torch.set_num_threads(1)
    engine = HfEngine(HfConfig(model=smollm2_folder(), gguf_file=GGUF_FILE))
    engine.load()
    seconds = dict.fromkeys(CASES, float("inf"))
    for _ in range(ROUNDS):
        for name, case in CASES.items():
            group, started = group_of(*case), time.process_time()
            asyncio.run(engine.score([group]))
            seconds[name] = min(seconds[name], time.process_time() - started)
    engine.close()
    plain = seconds["K = 32"]
    for name, (top_k, num_candidates) in CASES.items():
        more = top_k - 32 + num_candidates
        tokens = f"{(seconds[name] / plain - 1) / more:.6f} tokens each" if more > 0 else ""
        print(f"{name:26} {seconds[name]:.3f} s  {tokens}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
