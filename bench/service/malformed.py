"""Row 10: a million malformed messages, and what good callers notice of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from bench.service.engines import Fake
from bench.service.loads import Load, Report, Shape, client_processes, now, run_loads
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.servers import LogWatch, Server, Watch
from bench.workers import Worker

NUM_MESSAGES, NUM_RAW, NUM_FUZZERS = 1_000_000, 200, 2
WARM_MESSAGES = 20_000
"""Not counted for growth: the first ones make pools and caches."""
TEACHER = Fake(seconds_per_token=1e-4)
GOOD = Shape(prompt=64, num_responses=4, response=64)
NUM_GOOD_LOOPS, NUM_ROUNDS, LONGEST_PAUSE = 8, 8, 10.0
MIN_GOODPUT, MAX_GROWTH, MAX_LINES_PER_SECOND = 0.8, 1.05, 1.0
MUST_NOT_BE = ("INTERNAL", "UNKNOWN")


def run(room: Room) -> Result:
    with room.server(TEACHER) as server, _fuzzers(room) as fuzzers:
        fuzzers.send(server, count=room.count(WARM_MESSAGES), seed=1, seconds=60)
        warm = server.resident_mib()
        with Watch(server, every_seconds=0.5) as watch, LogWatch(server) as log:
            good, phases, found = _in_turn(room, server, fuzzers)
        ended = _raw(room, server) if server.is_alive() else 0
        after = run_loads([_good(server, 2.0)], tree=room.tree) if server.is_alive() else []
        status = server.process.poll()
    is_alive = status is None and bool(after and after[0].num_ok)
    codes, bad = found
    seconds = sum(until - since for since, until in phases["beside"])
    rates = {name: _tokens_per_second(good, spans) for name, spans in phases.items()}
    goodput = rates["beside"] / rates["alone"]
    num_sent = sum(codes.values())
    refused_badly = sum(codes[one] for one in MUST_NOT_BE)
    growth = watch.peak_mib / warm
    return Result(
        scenario=SCENARIO.name,
        figures=(
            Figure(what="malformed messages", value=num_sent, wanted=f"{NUM_MESSAGES:,}"),
            Figure(what="a second", value=num_sent / seconds),
            Figure(what="INTERNAL or UNKNOWN", value=refused_badly, old="UNKNOWN for each that is no protobuf",
                   wanted="0", is_met=refused_badly == 0),
            Figure(what="lines of log per 1,000 messages", value=1000 * log.num_lines / num_sent, old="1,100"),
            Figure(what="most lines of log in a second", value=log.most_a_second, wanted="<= 1",
                   is_met=log.most_a_second <= MAX_LINES_PER_SECOND),
            Figure(what="memory, times what it was", value=growth, wanted=f"<= {MAX_GROWTH}",
                   is_met=growth <= MAX_GROWTH),
            Figure(what="good tokens/s, share of alone", value=goodput, wanted=f">= {MIN_GOODPUT}",
                   is_met=goodput >= MIN_GOODPUT),
            Figure(what="good groups that failed", value=good.num_failed, wanted="0",
                   is_met=good.num_failed == 0),
            Figure(what="alive, and answers", value="yes" if is_alive else "no", wanted="yes",
                   is_met=is_alive),
        ),
        details={
            "codes": dict(codes),
            "bad": bad,
            "good": dict(good.outcomes),
            "good_tokens_per_second": rates,
            "raw_connections": room.count(NUM_RAW),
            "raw_ended_by_server": ended,
            "exit_status": status,
            "killed_for_memory": watch.has_killed,
            "warm_mib": warm,
            "peak_mib": watch.peak_mib,
        },
    )  # fmt: skip


def _good(server: Server, seconds: float) -> Load:
    return Load(
        address=server.address, kind="closed", caller="good", shape=GOOD, concurrency=NUM_GOOD_LOOPS, seconds=seconds
    )


Spans = dict[str, list[tuple[float, float]]]


class Fuzzers:
    """Processes that send malformed messages when asked."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers

    def send(self, server: Server, *, count: int, seed: int, seconds: float) -> tuple[Counter[str], dict[str, str]]:
        """`count` messages, or as many as the time allows. Codes, and an example of each that must not be."""
        codes: Counter[str] = Counter()
        bad: dict[str, str] = {}
        with ThreadPoolExecutor(len(self._workers)) as pool:
            answers = pool.map(
                lambda pair: pair[1].ask_for_fields(
                    do="fuzz",
                    address=server.address,
                    seed=1000 * seed + pair[0],
                    count=max(1, count // len(self._workers)),
                    seconds=max(1, round(seconds)),
                ),
                enumerate(self._workers),
            )
            for one in answers:
                codes.update(one["codes"])
                bad = {**one["bad"], **bad}
        return codes, bad


@contextmanager
def _fuzzers(room: Room) -> Iterator[Fuzzers]:
    with ExitStack() as stack:
        module = "bench.service.fuzz_client"
        yield Fuzzers([stack.enter_context(Worker(module, paths=room.tree.paths)) for _ in range(NUM_FUZZERS)])


def _in_turn(room: Room, server: Server, fuzzers: Fuzzers) -> tuple[Report, Spans, tuple[Counter[str], dict[str, str]]]:
    """Good groups go on all the while; malformed ones come and stay away by turns, so that both are measured alike."""
    seconds = room.minutes * 60
    pause = min(LONGEST_PAUSE, seconds / (4 * NUM_ROUNDS))
    spans: Spans = {"alone": [], "beside": []}
    codes: Counter[str] = Counter()
    bad: dict[str, str] = {}
    with client_processes([_good(server, seconds)], tree=room.tree) as clients:
        began = now()
        report = clients.go()
        for index in range(NUM_ROUNDS):
            since = now()
            time.sleep(pause)
            spans["alone"].append((since, now()))
            since, left = now(), seconds - (now() - began)
            some, worse = fuzzers.send(
                server,
                count=room.count(NUM_MESSAGES) // NUM_ROUNDS,
                seed=2 + index,
                seconds=left / (NUM_ROUNDS - index) - pause,
            )
            codes.update(some)
            bad = {**worse, **bad}
            spans["beside"].append((since, now()))
        return report()[0], spans, (codes, bad)


def _raw(room: Room, server: Server) -> int:
    with Worker("bench.service.fuzz_client", paths=room.tree.paths) as worker:
        fields = worker.ask_for_fields(do="raw", address=server.address, seed=3, count=room.count(NUM_RAW))
        return int(fields["ended"])


def _tokens_per_second(report: Report, spans: list[tuple[float, float]]) -> float:
    return sum(report.tokens_between(*span) for span in spans) / sum(until - since for since, until in spans)


SCENARIO = Scenario(
    name="malformed", about="1,000,000 malformed messages: codes, log, memory, good requests meanwhile", run=run
)
