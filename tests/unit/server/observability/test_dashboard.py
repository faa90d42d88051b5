"""The dashboard and the alerts against the registry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preceptor_server.observability.health import Health
from preceptor_server.observability.metrics import Metrics

from tests.unit.server.observability.queries import Use, uses

ROOT = Path(__file__).parents[4]
DASHBOARD = ROOT / "deploy" / "grafana" / "preceptor.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
OF_PROMETHEUS = {"instance", "job"}
"""Labels that a scrape adds."""


def labels_by_sample() -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for family in Metrics(health=Health(), version="1").families:
        for name in family.sample_names:
            known[name] = {*family.label_names, *OF_PROMETHEUS, *({"le"} if name.endswith("_bucket") else ())}
    return known


def dashboard() -> dict[str, Any]:  # Any: whatever JSON holds
    loaded = json.loads(DASHBOARD.read_text())
    assert isinstance(loaded, dict)
    return loaded


def panel_queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def variable_queries() -> Iterator[str]:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def alert_queries() -> Iterator[str]:
    yield from re.findall(r"^ +expr: (.+)$", ALERTS.read_text(), flags=re.MULTILINE)


def mistakes(query: str) -> list[str]:
    known, found = labels_by_sample(), list(uses(query))
    wrong = [] if found else [f"no metric in {query}"]
    for use in found:
        if use.metric not in known:
            wrong.append(f"{use.metric} does not exist")
        elif unknown := use.labels - known[use.metric]:
            wrong.append(f"{use.metric} has no labels {sorted(unknown)}")
    return wrong


@pytest.mark.parametrize("query", [*panel_queries(), *alert_queries()])
def test_every_query_names_metrics_and_labels_that_exist(query: str) -> None:
    assert mistakes(query) == []


@pytest.mark.parametrize("query", list(variable_queries()))
def test_every_variable_lists_a_label_that_exists(query: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert match is not None
    [use] = uses(match[1])
    assert {match[2], *use.labels} <= labels_by_sample()[use.metric]


def test_the_check_finds_what_is_wrong() -> None:
    assert mistakes("rate(preceptor_request_seconds_count[5m])") == ["preceptor_request_seconds_count does not exist"]
    assert mistakes('preceptor_queue_tokens{caller="a"}') == ["preceptor_queue_tokens has no labels ['caller']"]
    assert mistakes("sum by (caller) (preceptor_queue_tokens)") == ["preceptor_queue_tokens has no labels ['caller']"]
    assert mistakes("sum by (le) (preceptor_queue_tokens)") == ["preceptor_queue_tokens has no labels ['le']"]
    assert list(uses('sum by (a, b) (rate(preceptor_x{c=~"$c",d!="1"}[5m]))')) == [
        Use(metric="preceptor_x", labels=frozenset("abcd"))
    ]


def test_counters_are_asked_for_rates_and_histograms_for_buckets() -> None:
    """A counter's own value says when the server started, and nothing else."""
    for query in [*panel_queries(), *alert_queries()]:
        for use in uses(query):
            if use.metric.endswith(("_total", "_bucket", "_sum", "_count")):
                assert re.search(rf"(rate|increase)\({use.metric}[{{\[]", query), query


def test_every_query_of_the_dashboard_follows_its_variables() -> None:
    for query in panel_queries():
        for use in uses(query):
            assert "instance" in use.labels, query
            if "teacher" in labels_by_sample()[use.metric]:
                assert 'teacher=~"$teacher"' in query, query


def test_alerts_are_there() -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert len(alerts) == len(list(alert_queries())) == len(set(alerts)) == 8


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """Data sources are chosen by the variable, and nothing in it names an installation."""
    loaded = dashboard()
    assert (loaded["id"], loaded["uid"], loaded["title"]) == (None, "preceptor", "Preceptor")
    for panel in loaded["panels"]:
        if panel["type"] == "row":
            continue
        for place in (panel, *panel["targets"]):
            assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit", "short"), panel["title"]


def test_what_a_service_is_watched_for_is_shown() -> None:
    shown = {use.metric for query in panel_queries() for use in uses(query)}
    assert shown >= {
        "preceptor_requests_total",
        "preceptor_request_duration_seconds_bucket",
        "preceptor_queue_duration_seconds_bucket",
        "preceptor_queue_tokens",
        "preceptor_queue_bytes",
        "preceptor_batch_occupancy_ratio_sum",
        "preceptor_tokens_computed_total",
        "preceptor_tokens_reused_total",
        "preceptor_refusals_total",
        "preceptor_positions_total",
        "process_resident_memory_bytes",
        "preceptor_is_serving",
    }
