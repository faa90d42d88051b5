"""What is compared, by name: how each way is started, and the one thing that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from bench.teacher.outcome import Outcome
from bench.teacher.process_tree import ProcessTree
from bench.teacher.servers import ServerSettings, preceptor_server, vllm_serve
from bench.teacher.workloads import Job

DESCRIPTIONS = {
    "bare": "backbone forward over every sequence, in transformers, without a head",
    "hf": "our hf engine behind its scheduler, in process",
    "hf-grpc": "our hf engine, through TeacherClient",
    "vllm-stock": "our vllm engine on vLLM's own prompt logprobs, through TeacherClient",
    "vllm-fast": "our vllm engine's fast path, through TeacherClient",
    "trl": "TRL's VLLMClient.get_sequence_logprobs against `vllm serve`",
}
IGNORES_TOP_K = frozenset({"bare"})
"""Measured once in a round for each workload, whatever the Ks."""


class Way(Protocol):
    """Something that scores a job. Its processes may be paused between jobs."""

    @property
    def tree(self) -> ProcessTree:
        """Its processes on the teacher's side."""

    @property
    def command(self) -> tuple[str, ...]:
        """What started them."""

    def run(self, job: Job) -> Outcome:
        """Scores all groups of the job, handed over at once. Whatever is not scoring is left out of the seconds."""


def start_way(name: str, settings: ServerSettings) -> AbstractContextManager[Way]:
    """The way for the length of a block, started and answering."""
    starts: Mapping[str, Callable[[], AbstractContextManager[Way]]] = {
        "bare": lambda: _local("bare", settings),
        "hf": lambda: _local("hf", settings),
        "hf-grpc": lambda: _ours(name, settings, engine="hf"),
        "vllm-stock": lambda: _ours(name, settings, engine="vllm", path="stock"),
        "vllm-fast": lambda: _ours(name, settings, engine="vllm", path="fast"),
        "trl": lambda: _trl(settings),
    }
    return starts[name]()


@contextmanager
def _local(kind: str, settings: ServerSettings) -> Iterator[Way]:
    from bench.teacher.local import LocalWay

    with LocalWay(kind, settings) as way:
        yield way


@contextmanager
def _ours(name: str, settings: ServerSettings, *, engine: str, path: str | None = None) -> Iterator[Way]:
    from bench.teacher.grpc_way import GrpcWay

    with preceptor_server(settings, name=name, engine=engine, path=path) as server:
        yield GrpcWay(server)


@contextmanager
def _trl(settings: ServerSettings) -> Iterator[Way]:
    from bench.teacher.trl_way import TrlWay

    with vllm_serve(settings, name="trl") as server:
        yield TrlWay(server)
