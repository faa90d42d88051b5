"""One way at one size, in a process of its own: python -m bench.head_worker WAY CASE, asked by bench.head."""

from __future__ import annotations

import math
import sys
import time

import torch

from bench.head_case import Case, Inputs, inputs_of
from bench.head_memory import cuda_growth, resident_growth, torch_growth
from bench.head_ways import LOG_PARTITION_WAYS, WAYS, Way
from bench.workers import Answer, Request, serve

WARM_UP_POSITIONS = 8
"""Loads what is loaded at the first call, and leaves no large memory behind."""


def gradients(way: Way, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, and its gradients to the hidden states and to the matrix."""
    loss = way.loss(inputs)
    grad_ND, grad_VD = torch.autograd.grad(loss, [inputs.hidden_ND, inputs.head.weight])
    return loss.detach(), grad_ND, grad_VD


class Measuring:
    """Answers with seconds or bytes of one forward and backward."""

    def __init__(self, way: Way, case: Case) -> None:
        way.check_installed()
        self._way = way
        self._is_on_gpu = case.device == "cuda"
        self._inputs = inputs_of(case, with_teacher=way.uses_teacher_matrix)
        gradients(way, self._inputs.first(WARM_UP_POSITIONS))

    def answer(self, request: Request) -> Answer:
        match request["measure"]:
            case "resident" | "torch" if self._is_on_gpu:
                return {"bytes": cuda_growth(self._run)}
            case "resident":
                return {"bytes": resident_growth(self._run)}
            case "torch":
                return {"bytes": torch_growth(self._run)}
            case "seconds":
                started = time.perf_counter()
                loss = self._run()
                return {"seconds": time.perf_counter() - started, "loss": loss}
            case unknown:
                raise ValueError(f"no measure {unknown!r}: ask for resident, torch or seconds")

    def _run(self) -> float:
        loss, *_ = gradients(self._way, self._inputs)
        if self._is_on_gpu:
            torch.cuda.synchronize()
        assert math.isfinite(float(loss))
        return float(loss)


def main() -> None:
    name, case = sys.argv[1:]
    serve(lambda: Measuring((WAYS | LOG_PARTITION_WAYS)[name], Case.from_json(case)).answer)


if __name__ == "__main__":
    main()
