"""The training half of a step in one tree of the client: python -m bench.train_step_worker before|now STEP_FILE

bench.train_step asks it. Which client is measured is a matter of PYTHONPATH, so this file runs with both: "before" is
the interface of commit 70b95bd, "now" that of this tree.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from pathlib import Path

import torch

from bench.workers import Answer, Request, serve


class Measuring:
    """Answers with seconds, loss and norm of the gradient of one forward, loss and backward."""

    def __init__(self, tree: str, path: Path) -> None:
        if tree not in ("before", "now"):
            raise ValueError(f"no tree {tree!r}: before or now")
        # Only one of the two can be imported with either client.
        module = importlib.import_module(f"bench.train_step_{tree}")
        self._model, self._optimizer, self._accumulate = module.accumulating(path)
        self._accumulate()  # warms up

    def answer(self, _: Request) -> Answer:
        self._optimizer.zero_grad(set_to_none=True)
        started = time.perf_counter()
        loss = self._accumulate()
        seconds = time.perf_counter() - started
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        return {"seconds": seconds, "loss": loss, "gradient_norm": norm}


def main() -> None:
    torch.manual_seed(0)
    tree, path = sys.argv[1:]
    serve(lambda: Measuring(tree, Path(path)).answer)


if __name__ == "__main__":
    main()
