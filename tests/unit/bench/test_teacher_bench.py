"""What of the teacher bench needs no model: its ids, its order, its medians, and its going on where it was cut."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from bench.teacher.local_worker import to_score_group
from bench.teacher.measure import measure
from bench.teacher.options import parse
from bench.teacher.outcome import Outcome, RequestTimes, shares_of
from bench.teacher.plan import Plan
from bench.teacher.process_tree import ProcessTree
from bench.teacher.results import Cell, Measurement, Results
from bench.teacher.summary import attainable, summarise
from bench.teacher.trl_way import sequences_of
from bench.teacher.ways import Way
from bench.teacher.workloads import SHAPES, Job

PLAN = Plan(
    ways=("bare", "hf", "trl"), workloads=("W1", "W3"), top_ks=(1, 32), num_rounds=2, scale=0.05, vocabulary_size=1000
)
JOB = Job(workload="W3", round_index=0, top_k=32, scale=0.05, vocabulary_size=1000)


def measurement(*, seconds: float, num_positions: int = 100, reply_bytes: int | None = None) -> Measurement:
    outcome = Outcome(
        seconds=seconds, latencies=[seconds / 2, seconds], num_positions=num_positions, reply_bytes=reply_bytes
    )
    return Measurement(outcome=outcome, peak_bytes=int(seconds))


def cell(way: str, *, round_index: int = 0, top_k: int | None = 32) -> Cell:
    return Cell(round_index=round_index, workload="W1", top_k=top_k, way=way)


def test_all_ways_are_asked_about_the_same_ids() -> None:
    told = Job.from_json(JOB.to_json())  # as a worker process hears it
    ours = [
        [*group.prompt_ids_P.tolist(), *response.ids_T.tolist()]
        for group in (to_score_group(one, 32) for one in told.groups())
        for response in group.responses
    ]
    theirs, prompt_lengths = sequences_of(JOB)
    assert theirs == ours
    assert prompt_lengths == [1024 + 24] * 3


@pytest.mark.parametrize("change", [{"round_index": 1}, {"top_k": 1}, {"workload": "W1"}])
def test_no_two_jobs_begin_alike_so_that_no_cache_helps(change: dict[str, int | str]) -> None:
    other = replace(JOB, **change)  # type: ignore[arg-type]  # a field's own type
    assert not np.array_equal(JOB.groups()[0].prompt_ids[:16], other.groups()[0].prompt_ids[:16])


def test_the_prompts_of_w3_share_their_first_1024_tokens_and_no_more() -> None:
    first, second = (group.prompt_ids for group in JOB.groups()[:2])
    assert np.array_equal(first[:1024], second[:1024])
    assert not np.array_equal(first[1024:], second[1024:])


def test_a_shape_counts_what_its_groups_hold() -> None:
    for name in SHAPES:
        job = replace(JOB, workload=name, scale=1.0)
        sequences, prompt_lengths = sequences_of(job)
        assert sum(map(len, sequences)) == job.shape.num_tokens
        assert sum(map(len, sequences)) - sum(prompt_lengths) == job.shape.num_positions
    # By hand: 16 x (64 + 192); 8 x (256 + 8 x 64); 1,024 + 64 x (24 + 16).
    assert [shape.num_unique_tokens for shape in SHAPES.values()] == [4096, 6144, 3584]


def test_ways_take_turns_at_going_first_and_the_bare_one_is_measured_once_for_all_top_k() -> None:
    cells = list(PLAN.cells())
    assert len(cells) == len(set(cells)) == 2 * 2 * (2 * 2 + 1)
    assert {one.top_k for one in cells if one.way == "bare"} == {None}
    firsts = [one.way for before, one in zip([None, *cells], cells, strict=False) if key(before) != key(one)]
    assert {"hf", "trl"} <= set(firsts)


def key(one: Cell | None) -> object:
    return one and (one.round_index, one.workload, one.top_k)


def test_a_row_holds_medians_and_ratios_of_the_same_round() -> None:
    seconds = {"hf": [1.0, 10.0, 4.0], "trl": [2.0, 30.0, 4.0]}  # the second round met a busy machine
    cells = {
        cell(way, round_index=index): measurement(seconds=one, reply_bytes=300)
        for way, times in seconds.items()
        for index, one in enumerate(times)
    }
    ours, theirs = summarise(cells)
    assert (ours.positions_per_second, theirs.positions_per_second) == (25.0, 25.0)
    assert ours.times_peer == 2.0  # of 2, 3 and 1; the ratio of the medians would be 1
    assert (ours.bytes_per_position, ours.peak_bytes, ours.num_rounds) == (3.0, 10, 3)
    assert ours.latency_p50_seconds == np.median([0.5, 1, 5, 10, 2, 4])


def test_the_attainable_rate_counts_what_is_shared_once() -> None:
    shape = SHAPES["W3"]
    one = attainable([measurement(seconds=shape.num_tokens / 100)], shape)
    assert one.tokens_per_second == pytest.approx(100)
    assert one.positions_per_second == pytest.approx(1024 / 3584 * 100)


def test_stage_shares_add_up_to_what_the_caller_waited() -> None:
    times = [RequestTimes(latency=2.0, decode=0.1, queue=0.4, forward=1.0, server=1.7)] * 3
    shares = shares_of(times)
    assert shares == pytest.approx({"decode": 0.05, "queue": 0.2, "forward": 0.5, "rest": 0.1, "wire": 0.15})


class CountingTree:
    """Stands for the processes of a way."""

    @contextmanager
    def awake(self) -> Iterator[None]:
        yield

    def num_bytes(self) -> int:
        return 7


class CountingWay:
    """Answers at once; is cut off after `limit` jobs."""

    command = ("counting",)
    tree = cast(ProcessTree, CountingTree())

    def __init__(self, *, limit: int = 1000) -> None:
        self.limit, self.jobs = limit, list[Job]()

    def run(self, job: Job) -> Outcome:
        if len(self.jobs) == self.limit:
            raise KeyboardInterrupt
        self.jobs.append(job)
        return Outcome(seconds=1.0, latencies=[1.0], num_positions=job.shape.num_positions)


def run(results: Results, path: Path, way: CountingWay) -> None:
    ways: dict[str, Way] = dict.fromkeys(PLAN.ways, way)
    measure(PLAN, ways, results, save=lambda: results.save(path), tell=lambda *_: None)


def test_a_run_that_was_cut_goes_on_with_the_cells_that_it_lacks(tmp_path: Path) -> None:
    path, about = tmp_path / "runs" / "teacher.json", {"machine": {"cores": 2}, "settings": {"top_k": (1, 32)}}
    cut, whole = CountingWay(limit=5), CountingWay()
    with pytest.raises(KeyboardInterrupt):
        run(Results(about=about, commands={}, cells={}), path, cut)
    resumed = Results.resume(path, about=about)
    assert len(resumed.cells) == 5
    run(resumed, path, whole)
    assert list(Results.load(path).cells) == list(PLAN.cells())
    assert [*cut.jobs, *whole.jobs] == [PLAN.job(one) for one in PLAN.cells()]


def test_cells_of_another_machine_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "teacher.json"
    Results(about={"machine": "a", "model": "m"}, commands={}, cells={}).save(path)
    with pytest.raises(ValueError, match="machine: a there, b here"):
        Results.resume(path, about={"machine": "b", "model": "m"})


def test_a_way_that_answers_too_little_ends_the_bench(tmp_path: Path) -> None:
    class Forgetful(CountingWay):
        def run(self, job: Job) -> Outcome:
            return replace(super().run(job), num_positions=3)

    with pytest.raises(RuntimeError, match="3 positions instead of 192"):
        run(Results(about={}, commands={}, cells={}), tmp_path / "x.json", Forgetful())


def test_an_unknown_way_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--ways", "hf,sglang"])
    assert "'sglang' is none of bare, hf, " in capsys.readouterr().err
