"""What the command line of the bench says."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TypeVar

from bench.teacher.ways import DESCRIPTIONS
from bench.teacher.workloads import SHAPES
from deploy.local.smollm2 import Dtype

ItemT = TypeVar("ItemT")

DEFAULT_OUTPUT = Path("runs/bench/teacher.json")


class Options(argparse.Namespace):
    """Typed, and filled by `parse`."""

    rounds: int
    top_k: tuple[int, ...]
    workloads: tuple[str, ...]
    ways: tuple[str, ...]
    dtype: Dtype
    scale: float
    model: Path | None
    max_model_len: int
    kvcache_gib: int
    threads_bind: str
    eager: bool
    gpu_memory_share: float | None
    output: Path
    resume: bool

    def settings(self) -> dict[str, object]:
        """What must be equal for two runs' cells to be compared. More rounds may be added later."""
        names = (
            "top_k",
            "workloads",
            "ways",
            "dtype",
            "scale",
            "max_model_len",
            "kvcache_gib",
            "threads_bind",
            "eager",
            "gpu_memory_share",
        )
        return {name: getattr(self, name) for name in names}


def parse(arguments: Sequence[str]) -> Options:
    """Ends the program where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.teacher",
        description="Ways to ask a teacher for top-K logprobs, side by side, in interleaved rounds.",
        epilog="ways: " + "; ".join(f"{name}: {text}" for name, text in DESCRIPTIONS.items()),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top-k", type=_list_of(int), default=(1, 32, 64))
    parser.add_argument("--workloads", type=_list_of(_one_of(SHAPES)), default=tuple(SHAPES))
    parser.add_argument("--ways", type=_list_of(_one_of(DESCRIPTIONS)), default=tuple(DESCRIPTIONS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of groups; below 1 for a smoke test")
    parser.add_argument("--model", type=Path, help="a folder; SmolLM2-135M-Instruct, made in runs/models, where absent")
    parser.add_argument("--max-model-len", type=int, default=2048, help="of vLLM, in every way that runs it")
    parser.add_argument("--kvcache-gib", type=int, default=2, help="VLLM_CPU_KVCACHE_SPACE of every way that runs vLLM")
    parser.add_argument("--threads-bind", default="auto", help="VLLM_CPU_OMP_THREADS_BIND, likewise; auto or nobind")
    parser.add_argument("--eager", action="store_true", help="vLLM uncompiled, ours and TRL's: it starts in a minute")
    parser.add_argument(
        "--gpu-memory-share", type=float, help="vLLM's gpu_memory_utilization, of each way; its own where absent"
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--resume", action="store_true", help="keep the cells of --output and measure what is missing")
    return parser.parse_args(arguments, namespace=Options())


def _list_of(item: Callable[[str], ItemT]) -> Callable[[str], tuple[ItemT, ...]]:
    def read(text: str) -> tuple[ItemT, ...]:
        return tuple(item(part) for part in text.split(","))

    return read


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return read
