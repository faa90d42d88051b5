from __future__ import annotations

import re
from pathlib import Path

import pytest
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.report import read_run, write_report

from tests.unit.client.train.reports import Json, curve, embedded, figures, step_row, write_run


def _figures(directory: Path, *rows: MetricRow) -> dict[str, Json]:
    write_run(directory, rows)
    write_report(directory / "report.html", run=read_run(directory).summary)
    return figures(directory / "report.html")


def _breakdown(step: int, by: str, group: str, **measures: float) -> MetricRow:
    return {"kind": "breakdown", "step": step, "by": by, "group": group, **measures}


def test_curves_hold_the_rows_numbers_and_gaps_where_nothing_was_measured(tmp_path: Path) -> None:
    rows = [step_row(1, student_mass=0.5), step_row(2, student_mass=None), step_row(3, student_mass=0.75)]
    found = _figures(tmp_path, *rows)
    assert curve(found["Loss"], "loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert curve(found["Coverage"], "student's mass") == [(1, 0.5), (2, None), (3, 0.75)]


def test_a_run_older_than_the_measures_has_no_plots_of_them(tmp_path: Path) -> None:
    found = _figures(tmp_path, step_row(1, overlap=None), step_row(2, overlap=None))
    assert list(found) == ["Loss"]
    assert embedded(tmp_path / "report.html", "rollouts") is None
    assert 'id="tokens"' not in (tmp_path / "report.html").read_text()


def test_a_curve_keeps_its_colour_where_those_before_it_are_missing(tmp_path: Path) -> None:
    (trace,) = _figures(tmp_path, step_row(1, teacher_entropy=2.0))["Entropy"]["traces"]
    assert (trace["name"], trace["line"]["color"]) == ("teacher", "--c1")


def test_every_plot_has_a_place_on_the_page_and_says_what_healthy_looks_like(tmp_path: Path) -> None:
    measures = dict.fromkeys(("overlap", "gap", "gap_q50", "positive_share", "repeated_share", "end_agreement"), 0.5)
    found = _figures(tmp_path, step_row(1, **measures, gradient_norm=1.0, confident_disagreements=1))
    page = (tmp_path / "report.html").read_text().split("<script>")[0]
    places = re.findall(r'<h3>([^<]*)</h3><div class="plot" id="plot-(\d+)"', page)
    assert [(title.replace("&#39;", "'"), int(index)) for title, index in places] == [
        (title, index) for index, title in enumerate(found)
    ]
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert len(captions) == len(found) == 8
    assert all("Healthy:" in caption for caption in captions)


def test_the_band_of_quantiles_encloses_what_was_measured(tmp_path: Path) -> None:
    quantiles = {"gap_q05": -3.0, "gap_q25": -1.0, "gap_q50": -0.25, "gap_q75": 0.0, "gap_q95": 0.5}
    traces = _figures(tmp_path, step_row(1, **quantiles))["Signal of the student's tokens"]["traces"]
    assert [(trace.get("name"), trace["y"]) for trace in traces] == [
        (None, [-3.0]),
        ("5% to 95%", [0.5]),
        (None, [-1.0]),
        ("25% to 75%", [0.0]),
        ("median", [-0.25]),
    ]
    # An area is filled down to the trace before it.
    assert [trace.get("fill") for trace in traces] == [None, "tonexty", None, "tonexty", None]


def test_heldout_accuracy_is_drawn_beside_the_teachers_prompts(tmp_path: Path) -> None:
    answers: list[dict[str, str | bool]] = [{"prompt": "p", "expected": "e", "answer": "a", "is_correct": True}]
    held: MetricRow = {"num_examples": 4, "num_correct": 1, "mean_answer_length": 1.0, "answers": answers}
    rows: list[MetricRow] = [
        {"kind": "heldout", "step": 0, "accuracy": 0.25, **held},
        {"kind": "heldout_teacher", "step": 0, "accuracy": 0.75, **held},
        step_row(1),
        {"kind": "heldout", "step": 1, "accuracy": 0.5, **held},
    ]
    found = _figures(tmp_path, *rows)["Held-out accuracy"]
    assert curve(found, "student") == [(0, 0.25), (1, 0.5)]
    assert curve(found, "untrained, with the teacher's prompts") == [(0, 0.75), (1, 0.75)]


def test_positions_are_shown_at_the_first_and_the_last_step_in_order_of_position(tmp_path: Path) -> None:
    measures = {"gap_q05": -4.0, "gap_q95": 1.0}
    found = _figures(
        tmp_path,
        _breakdown(1, "position", "64-255", gap=-2.0, repeated_share=0.5, **measures),
        _breakdown(1, "position", "0-15", gap=-1.0, repeated_share=0.25, **measures),
        _breakdown(2, "position", "0-15", gap=-9.0, repeated_share=0.99, **measures),
        _breakdown(3, "position", "4096-", gap=-0.5, repeated_share=0.75, **measures),
        step_row(3),
    )
    assert found["Signal by position"]["layout"]["xaxis"]["ticktext"] == ["0-15", "64-255", "4096-"]
    first, last = found["Signal by position"]["traces"]
    assert (first["name"], first["x"], first["y"]) == ("step 1", [1.0, 0.0], [-2.0, -1.0])
    assert (last["name"], last["text"], last["y"]) == ("step 3", ["4096-"], [-0.5])
    assert (first["error_y"]["arrayminus"], first["error_y"]["array"]) == ([2.0, 3.0], [3.0, 2.0])
    assert curve(found["Repetition by position"], "step 1") == [(1, 0.5), (0, 0.25)]
    assert curve(found["Repetition by position"], "step 3") == [(2, 0.75)]


def test_each_task_has_a_line(tmp_path: Path) -> None:
    found = _figures(
        tmp_path,
        _breakdown(1, "task", "maths", loss=2.0, num_positions=5),
        _breakdown(1, "task", "code", loss=3.0, num_positions=9),
        _breakdown(2, "task", "maths", loss=1.0, num_positions=5),
        step_row(2),
    )
    assert curve(found["Loss by task"], "maths") == [(1, 2.0), (2, 1.0)]
    assert curve(found["Loss by task"], "code") == [(1, 3.0)]
    assert "Signal by task" not in found


def test_of_many_tasks_the_largest_are_shown_and_the_caption_says_so(tmp_path: Path) -> None:
    rows = [_breakdown(1, "task", f"t{index}", loss=1.0, num_positions=index) for index in range(10)]
    found = _figures(tmp_path, *rows, step_row(1))
    assert [trace["name"] for trace in found["Loss by task"]["traces"]] == [f"t{index}" for index in range(2, 10)]
    assert "The 8 tasks with the most positions of 10." in (tmp_path / "report.html").read_text()


def test_positions_without_a_score_are_shares_of_all_tokens(tmp_path: Path) -> None:
    counts = {"num_ok": 6, "num_special": 1, "num_misaligned": 3, "num_unmapped": 0}
    found = _figures(tmp_path, step_row(1, **counts))["Positions without a score"]
    assert curve(found, "special") == [(1, 0.1)]
    assert curve(found, "misaligned") == [(1, 0.3)]
    assert len(found["traces"]) == 2


@pytest.mark.parametrize("counts", [{}, {"num_ok": 6, "num_special": 0}])
def test_where_all_have_a_score_there_is_nothing_to_show(tmp_path: Path, counts: dict[str, float]) -> None:
    assert "Positions without a score" not in _figures(tmp_path, step_row(1, **counts))
