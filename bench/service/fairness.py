"""Rows 4 to 6: who gets how much of a teacher that everyone wants, and how long a short group waits beside a flood."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bench.service.engines import MAX_BATCH_TOKENS, Fake
from bench.service.keys import NO_KEYS, Key, has_keys, write_access
from bench.service.loads import Load, Report, Shape, client_processes, now, percentile
from bench.service.proxy import Proxy
from bench.service.results import Figure, Result
from bench.service.room import Room, Scenario
from bench.service.shares import jain, worst_deviation

TEACHER = Fake(seconds_per_token=1e-4, max_model_len=20_000)
LARGE = Shape(prompt=400, num_responses=4, response=900)
SMALL = Shape(prompt=60, num_responses=4, response=60)
FLOOD = Shape(prompt=192, num_responses=8, response=1000)
SHORT = Shape(prompt=16, num_responses=1, response=32)
WEIGHTS = (1.0, 2.0, 4.0)
SECONDS = 40.0
SMALL_BATCHES = ("--scheduler.max-batch-tokens", "512")
"""A larger group has a forward of its own."""
MIN_JAIN, MAX_DEVIATION, MAX_BATCHES = 0.98, 0.05, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What one tenant does. Tenants without keys are told apart by the addresses that they come from."""

    load: Load
    api_key: str = ""


def measured(room: Room, tenants: Sequence[Tenant], *arguments: str, name: str) -> tuple[list[Report], float, float]:
    """All at once; also the time in which all of them ask, without its first quarter."""
    with ExitStack() as stack:
        server = stack.enter_context(room.server(TEACHER, *arguments, name=name))
        loads = []
        for index, one in enumerate(tenants):
            proxy = stack.enter_context(Proxy(server.address, source=f"127.0.0.{10 + index}"))
            seconds = min(SECONDS, room.minutes * 60)
            loads.append(replace(one.load, address=proxy.address, api_key=one.api_key, seconds=seconds, seed=index))
        clients = stack.enter_context(client_processes(loads, tree=room.tree))
        began = now()
        reports = clients.go()()
        return reports, began + seconds / 4, began + seconds


def tokens(room: Room, tenants: Sequence[Tenant], *arguments: str, name: str) -> list[int]:
    """That each tenant had scored."""
    reports, since, until = measured(room, tenants, *arguments, name=name)
    return [one.tokens_between(since, until) for one in reports]


def closed(caller: str, shape: Shape, *, concurrency: int, num_names: int = 1) -> Load:
    return Load(
        address="",
        kind="closed",
        caller=caller,
        shape=shape,
        concurrency=concurrency,
        num_channels=num_names,
        names_differ=num_names > 1,
    )


def opened(caller: str, shape: Shape, *, share: float) -> Load:
    """Asks for `share` of what the teacher can do."""
    return Load(
        address="",
        kind="open",
        caller=caller,
        shape=shape,
        per_second=share / (shape.num_tokens * TEACHER.seconds_per_token),
        timeout_seconds=20.0,
    )


def weighted_keys(room: Room) -> tuple[list[Key], list[str]]:
    """A key for each weight, and the server's arguments."""
    keys = [Key(tenant=f"weight-{weight:g}") for weight in WEIGHTS]
    tenants = {key.tenant: {"weight": weight} for key, weight in zip(keys, WEIGHTS, strict=True)}
    path = write_access(room.folder / "access.toml", keys, tenants=tenants)
    return keys, ["--access.file", str(path)]


def run(room: Room) -> Result:
    details: dict[str, object] = {}
    figures: list[Figure] = []

    def even(what: str, tenants: Sequence[Tenant], *arguments: str, old: str, name: str) -> None:
        details[name] = got = tokens(room, tenants, *arguments, name=name)
        index, largest = jain(got), max(got) / max(1, sum(got))
        figures.append(
            Figure(what=f"{what}: Jain", value=index, old=old, wanted=f">= {MIN_JAIN}", is_met=index >= MIN_JAIN)
        )
        figures.append(Figure(what=f"{what}: largest share", value=100 * largest, unit="%"))

    one, many = closed("one", LARGE, concurrency=1), closed("many", SMALL, concurrency=16)
    pair = [Tenant(load=one), Tenant(load=many)]
    even(
        "1 x 4,000 beside 16 x 300, closed, batches of 512", pair, *SMALL_BATCHES, old="0.57 (93 %)", name="closed-512"
    )
    even("the same, batches of 4,096", pair, old="", name="closed")
    loops = [closed(f"equal-{index}", SMALL, concurrency=20) for index in range(2)]
    named = closed("named", SMALL, concurrency=1, num_names=20)
    even("three equal, one under 20 names", [Tenant(load=load) for load in [*loops, named]], old="86 %", name="names")
    opens = [opened("one", LARGE, share=1.0), opened("many", SMALL, share=1.0), opened("other", SMALL, share=0.9)]
    even("open loops, 2.9 times capacity", [Tenant(load=load) for load in opens], old="", name="open")

    figures += short_beside_flood(room, details)
    skipped = ""
    if has_keys(room.tree):
        keys, arguments = weighted_keys(room)
        tenants = [Tenant(load=closed(key.tenant, SMALL, concurrency=40), api_key=key.text) for key in keys]
        details["weights"] = got = tokens(room, tenants, *arguments, name="weights")
        worst = worst_deviation(got, WEIGHTS)
        figures.append(
            Figure(what="weights 1:2:4: worst deviation", value=100 * worst, unit="%", wanted="<= 5 %",
                   is_met=worst <= MAX_DEVIATION)
        )  # fmt: skip
    else:
        skipped = f"weights 1:2:4: {NO_KEYS}"
    return Result(scenario=SCENARIO.name, figures=tuple(figures), details=details, skipped=skipped)


def short_beside_flood(room: Room, details: dict[str, object]) -> list[Figure]:
    """A short group each second, alone and beside a caller that keeps eight groups of 8k waiting."""
    short = Load(address="", kind="open", caller="short", shape=SHORT, per_second=1.0)
    flood = closed("flood", FLOOD, concurrency=8)
    waits = {}
    for name, tenants in (("alone", [short]), ("beside", [short, flood])):
        reports, since, _ = measured(room, [Tenant(load=load) for load in tenants], name=f"short-{name}")
        waits[name] = reports[0].latencies(since=since)
        details[f"short {name}"] = {"seconds": waits[name], "outcomes": dict(reports[0].outcomes)}
    batch = MAX_BATCH_TOKENS * TEACHER.seconds_per_token
    p95 = percentile(waits["beside"], 95)
    return [
        Figure(what="short group alone: p95", value=percentile(waits["alone"], 95), unit="s", old="0.02 s"),
        Figure(what="short group beside 8k groups: p95", value=p95, unit="s",
               old="1.9 s where a batch takes 1 s"),
        Figure(what="the same, in times of a batch of 4,096", value=p95 / batch, unit="batches",
               wanted=f"<= {MAX_BATCHES:g}", is_met=p95 <= MAX_BATCHES * batch),
        Figure(what="the same, in times of an 8k group's own forward", unit="forwards",
               value=p95 / (FLOOD.num_tokens * TEACHER.seconds_per_token)),
        Figure(what="the same, longest", value=max(waits["beside"], default=float("nan")) / batch, unit="batches"),
    ]  # fmt: skip


SCENARIO = Scenario(
    name="fairness", about="shares of closed and open loops, names, weights; a short group in a flood", run=run
)
