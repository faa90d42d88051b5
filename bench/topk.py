"""Exact top-K with ordered ties against torch.topk, side by side, by tile size: python -m bench.topk

Rows of 49,152 fp32 logits, K = 32, interleaved rounds, medians, microseconds per row.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from preceptor_server.engines import columns

NUM_ROWS, VOCABULARY_SIZE, TOP_K, ROUNDS = 128, 49_152, 32, 15
TILES = (32, 64, 128, 192)


def microseconds_per_row(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / NUM_ROWS * 1e6


def main() -> int:
    """Prints one line per way."""
    logits = torch.randn(NUM_ROWS, VOCABULARY_SIZE, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        times.setdefault("torch.topk", []).append(microseconds_per_row(lambda: logits.topk(TOP_K)))
        for tile in TILES:
            columns.TILE = tile
            row = microseconds_per_row(lambda: columns.top_k_ids(logits, TOP_K))
            times.setdefault(f"top_k_ids, tiles of {tile}", []).append(row)
    for name, rows in times.items():
        print(f"{name:28} {statistics.median(rows):6.1f} us a row")
    return 0


if __name__ == "__main__":
    sys.exit(main())
