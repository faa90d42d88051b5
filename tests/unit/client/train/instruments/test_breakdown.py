from __future__ import annotations

import json

import pytest
from preceptor_client.train.instruments.breakdown import breakdown_rows
from preceptor_client.train.instruments.table import position_table
from preceptor_client.train.record.metrics import MetricRow

from tests.unit.client.train.instruments.slow import SlowStep, same, slow_measures, slow_step
from tests.unit.client.train.instruments.steps import END, OTHER_END, Step, Token, random_step, response, step_of

ENDS = (END, OTHER_END)
BUCKETS = {"0-15": (0, 16), "16-63": (16, 64), "64-255": (64, 256), "256-1023": (256, 1024), "1024-4095": (1024, 4096)}


def rows_of(step: Step) -> list[MetricRow]:
    return breakdown_rows(position_table(*step, end_token_ids=ENDS), step=7)


def slow_buckets(slow: SlowStep) -> dict[str, SlowStep]:
    return {
        label: SlowStep(
            rows=[row for row in slow.rows if start <= row["position"] < end],
            responses=[one for one in slow.responses if one[0] > start],
        )
        for label, (start, end) in BUCKETS.items()
        if any(one[0] > start for one in slow.responses)
    }


@pytest.mark.parametrize("seed", range(12))
def test_buckets_and_tasks_agree_with_a_loop_over_the_positions(seed: int) -> None:
    step = random_step(seed, tasks=("maths", "code", ""), longest=300)
    slow = slow_step(*step, ends=ENDS)
    expected = [("position", label, slow_measures(part)) for label, part in slow_buckets(slow).items()]
    tasks = sorted({task for *_, task in slow.responses})
    if any(tasks):
        for task in tasks:
            part = SlowStep(
                rows=[row for row in slow.rows if row["task"] == task],
                responses=[one for one in slow.responses if one[3] == task],
            )
            expected.append(("task", task or "(none)", slow_measures(part)))
    found = rows_of(step)
    assert [(row["by"], row["group"]) for row in found] == [(by, group) for by, group, _ in expected]
    for row, (_, _, measures) in zip(found, expected, strict=True):
        assert same(row, measures)


def test_rows_are_rows_of_metrics() -> None:
    [row] = rows_of(step_of(response(Token(id=5))))
    assert list(row)[:4] == ["kind", "step", "by", "group"]
    assert (row["kind"], row["step"], row["by"], row["group"]) == ("breakdown", 7, "position", "0-15")
    json.dumps(row, allow_nan=False)


def test_last_bucket_has_no_end() -> None:
    step = step_of(response(*(Token(id=index) for index in range(10, 10 + 4098))))
    found = {row["group"]: row["num_positions"] for row in rows_of(step)}
    assert found == {"0-15": 16, "16-63": 48, "64-255": 192, "256-1023": 768, "1024-4095": 3072, "4096-": 2}


def test_cut_responses_count_among_those_that_reach_the_bucket() -> None:
    """One response of 17 tokens was cut, one of 16 ended: the second does not reach the second bucket."""
    cut = response(*(Token(id=index) for index in range(10, 27)))
    ended = response(*(Token(id=index) for index in range(10, 25)), Token(id=END))
    found = {row["group"]: (row["truncated_share"], row["scored_end_share"]) for row in rows_of(step_of(cut, ended))}
    assert found == {"0-15": (0.5, 1.0), "16-63": (1.0, None)}


def test_tasks_have_rows_only_where_some_example_names_one() -> None:
    def tasks(*names: str) -> list[object]:
        step = step_of(*(response(Token(id=5), task=name) for name in names))
        return [row["group"] for row in rows_of(step) if row["by"] == "task"]

    assert tasks("", "") == []
    assert tasks("", "b", "a", "b") == ["(none)", "a", "b"]


def test_a_step_without_responses_has_no_rows() -> None:
    assert rows_of(([], [])) == []
