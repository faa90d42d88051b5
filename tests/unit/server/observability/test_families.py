from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.observability.families import Histogram, ReadGauge, Values, render
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as TheirCounter
from prometheus_client import Histogram as TheirHistogram

from tests.unit.server.observability.samples import Samples

BOUNDS = (0.1, 1.0, 10.0)


def test_a_counter_is_shown_with_its_labels_and_type() -> None:
    counter = Values("asked_total", "What was asked.", ("by", "what"))
    counter.at("a", "x").value += 2
    counter.at("b", "x").value += 0.5
    assert render([counter]).decode().splitlines() == [
        "# HELP asked_total What was asked.",
        "# TYPE asked_total counter",
        'asked_total{by="a",what="x"} 2',
        'asked_total{by="b",what="x"} 0.5',
    ]


def test_without_labels_there_are_no_braces() -> None:
    counter = Values("asked_total", "Asked.")
    counter.at().value = 3
    assert render([counter]).decode().splitlines()[-1] == "asked_total 3"


def test_a_family_without_children_is_left_out() -> None:
    assert render([Values("asked_total", "Asked.", ("by",)), Histogram("h", "H.", bounds=BOUNDS)]) == b""


@given(st.lists(st.floats(0, 100), max_size=50))
def test_a_histogram_equals_that_of_prometheus(observed: list[float]) -> None:
    ours, registry = Histogram("took_seconds", "Took.", ("by",), bounds=BOUNDS), CollectorRegistry()
    theirs = TheirHistogram("took_seconds", "Took.", ["by"], buckets=BOUNDS, registry=registry)
    child = ours.at("a")
    theirs.labels("a")
    for value in observed:
        child.observe(value)
        theirs.labels("a").observe(value)
    samples = Samples(render([ours]))
    for name, labels in [
        *(("took_seconds_bucket", {"by": "a", "le": le}) for le in ("0.1", "1.0", "10.0", "+Inf")),
        *((name, {"by": "a"}) for name in ("took_seconds_sum", "took_seconds_count")),
    ]:
        our_labels = {
            key: f"{float(value):g}" if key == "le" and value != "+Inf" else value for key, value in labels.items()
        }
        assert samples[name, our_labels] == pytest.approx(registry.get_sample_value(name, labels))


@given(st.text(min_size=1), st.text())
def test_any_text_as_a_label_is_read_back_by_prometheus(first: str, second: str) -> None:
    counter, registry = Values("asked_total", "Asked.", ("one", "other")), CollectorRegistry()
    counter.at(first, second).value = 1
    TheirCounter("asked", "Asked.", ["one", "other"], registry=registry).labels(first, second).inc()
    assert registry.get_sample_value("asked_total", {"one": first, "other": second}) == 1
    lines = render([counter]).decode(errors="surrogatepass")
    assert lines.count("\n") == 3, "a label broke its line"
    [family] = Samples(lines.encode(errors="surrogatepass")).families
    assert family.samples[0].labels == {"one": first, "other": second}


def test_what_is_read_no_more_is_shown_no_more() -> None:
    gauge = ReadGauge("waits", "Waits.", ("of",))
    gauge.read({("a",): 1, ("b",): 2})
    gauge.read({("b",): 3})
    assert Samples(render([gauge])).matching("waits", {}) == [3]


def test_one_distribution_may_stand_under_two_names() -> None:
    first, second = Histogram("a_seconds", "A.", ("x",), bounds=BOUNDS), Histogram("b_seconds", "B.", bounds=BOUNDS)
    child = first.at("1")
    second.show(child)
    child.observe(0.5)
    samples = Samples(render([first, second]))
    assert samples["a_seconds_count", {"x": "1"}] == samples["b_seconds_count", {}] == 1
