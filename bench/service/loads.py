"""What client processes do, and what they report. Knows nothing of why."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from bench.service.trees import Tree
from bench.workers import Worker

OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a group, in tokens."""

    prompt: int = 16
    num_responses: int = 2
    response: int = 16

    @property
    def num_tokens(self) -> int:
        return self.prompt + self.num_responses * self.response


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One client process."""

    address: str
    kind: Literal["burst", "closed", "open"]
    """burst: `concurrency` calls a channel at once, and then no more. closed: so many loops a channel, each of which
    sends when it has its answer. open: `per_second` groups a second, answered or not."""
    caller: str = "client"
    num_channels: int = 1
    """Connections of its own for each."""
    names_differ: bool = False
    """Whether each channel goes by a name of its own."""
    teacher: str = ""
    """Its name; empty = the only one."""
    shape: Shape = Shape()
    top_k: int = 8
    vocabulary_size: int = 63
    """Ids below it are sent."""
    concurrency: int = 1
    per_second: float = 1.0
    think_seconds: float = 0.0
    """Of a closed loop, between its groups; drawn from an exponential distribution."""
    seconds: float = 10.0
    """How long groups are sent; what is in flight then is waited for."""
    num_groups: int = 0
    """Of a closed loop: it ends after so many. 0 = it goes on as long as `seconds` allow."""
    stop_file: str = ""
    """No more groups are sent once this file exists."""
    timeout_seconds: float = 300.0
    bad_token: int | None = None
    """With which every response begins."""
    ledger: str = ""
    """File to keep the ledger in."""
    seed: int = 0
    api_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One group that was scored; seconds of the machine's monotonic clock, which all processes share."""

    began: float
    ended: float
    num_tokens: int
    forward_seconds: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one client process met."""

    outcomes: Mapping[str, int]
    """How often each, OK among them."""
    messages: Mapping[str, str]
    """Of each outcome but OK the first error's text."""
    samples: tuple[Sample, ...]
    revisions: Mapping[str, int]
    """Groups by the revision of the weights that scored them."""
    num_retries: int
    resident_mib: float

    @property
    def num_ok(self) -> int:
        return self.outcomes.get(OK, 0)

    @property
    def num_failed(self) -> int:
        return sum(self.outcomes.values()) - self.num_ok

    def latencies(self, *, since: float = 0.0) -> list[float]:
        """In seconds, of groups that began after `since`."""
        return [one.seconds for one in self.samples if one.began >= since]

    def tokens_between(self, since: float, until: float) -> int:
        """Of groups that were answered in that time."""
        return sum(one.num_tokens for one in self.samples if since <= one.ended < until)

    def to_json(self) -> dict[str, object]:
        fields = dataclasses.asdict(self)
        return {**fields, "samples": [dataclasses.astuple(one) for one in self.samples]}

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> Self:
        names = [one.name for one in dataclasses.fields(Sample)]
        samples = tuple(Sample(**dict(zip(names, row, strict=True))) for row in fields["samples"])  # type: ignore[attr-defined]  # rows of to_json
        return cls(**{**fields, "samples": samples})  # type: ignore[arg-type]  # the fields of to_json


def outcomes_of(reports: Sequence[Report]) -> dict[str, int]:
    """Of all processes."""
    total: Counter[str] = Counter()
    for one in reports:
        total.update(one.outcomes)
    return dict(total)


def messages_of(reports: Sequence[Report]) -> dict[str, str]:
    """The first error's text of each outcome."""
    return {reason: text for one in reports for reason, text in one.messages.items()}


def percentile(seconds: Sequence[float], q: float) -> float:
    """NaN of nothing."""
    return float(np.percentile(seconds, q)) if len(seconds) else float("nan")


class Clients:
    """Client processes that are connected and wait for the word."""

    def __init__(self, loads: Sequence[Load], workers: Sequence[Worker]) -> None:
        self._loads, self._workers = loads, workers
        self._pool = ThreadPoolExecutor(max(1, len(workers)))
        self.pids = [worker.pid for worker in workers]

    def connect(self) -> None:
        """Each process loads what it needs and asks the server who it is, few at a time."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda pair: pair[0].ask_for_fields(do="connect", load=pack(pair[1])), self._pairs()))

    def go(self) -> Callable[[], list[Report]]:
        """All at once; returns at once, and what it returns waits for the reports."""
        futures = [self._pool.submit(worker.ask_for_fields, do="go") for worker in self._workers]
        return lambda: [Report.from_json(future.result()) for future in futures]

    def _pairs(self) -> list[tuple[Worker, Load]]:
        return list(zip(self._workers, self._loads, strict=True))


@contextmanager
def client_processes(loads: Sequence[Load], *, tree: Tree) -> Iterator[Clients]:
    """Connected, for the length of the block; ended after it, busy or not."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("bench.service.client", paths=tree.paths)) for _ in loads]
        clients = Clients(loads, workers)
        clients.connect()
        yield clients


def run_loads(loads: Sequence[Load], *, tree: Tree) -> list[Report]:
    """All at once, to their end."""
    with client_processes(loads, tree=tree) as clients:
        return clients.go()()


def pack(load: Load) -> str:
    return json.dumps(dataclasses.asdict(load))


def unpack(text: str) -> Load:
    fields = json.loads(text)
    return Load(**{**fields, "shape": Shape(**fields["shape"])})


def ledger_files(folder: Path, count: int) -> list[str]:
    """New and empty."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"ledger-{index}.jsonl" for index in range(count)]
    for path in paths:
        path.unlink(missing_ok=True)
    return [str(path) for path in paths]


def now() -> float:
    """As in samples."""
    return time.monotonic()
