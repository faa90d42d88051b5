"""`preceptor report`: what it writes, and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from preceptor_client import cli

from tests.unit.client.train.reports import CONFIG, curve, figures, step_row, write_run

OTHER = CONFIG.replace("runs/a", "runs/b").replace('"small"', '"tiny"') + "seed = 3\n"


def _cells(html: str, section: str) -> list[list[str]]:
    """The rows of a section's table, as texts."""
    table = html.split(f'<section id="{section}">')[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL)]
        for row in rows
    ]


def test_one_run_gets_its_report_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", [step_row(1), step_row(2)])
    (run / "report.html").write_text("the last one")
    assert cli.main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert curve(figures(run / "report.html")["Loss"], "loss") == [(1, 1.0), (2, 0.5)]
    assert "Not finished: 2 of 4 steps." in (run / "report.html").read_text()
    assert "none saved yet" in (run / "report.html").read_text()
    assert sorted(path.name for path in run.iterdir()) == ["config.toml", "metrics.jsonl", "report.html"]


def test_a_run_that_is_writing_is_read_up_to_its_last_whole_row(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [step_row(1)])
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(step_row(2))[:-9])
    assert cli.main(["report", str(run), "--output", str(tmp_path / "out.html")]) == 0
    assert curve(figures(tmp_path / "out.html")["Loss"], "loss") == [(1, 1.0)]


def test_the_newest_whole_checkpoint_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [step_row(step) for step in range(1, 5)])
    for name in ("step-999999", "step-1000000", "step-1000001", ".writing-step-1000002"):
        (run / "checkpoints" / name).mkdir(parents=True)
        if name != "step-1000001":
            (run / "checkpoints" / name / "state.json").write_text("{}")
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert f"<code>{run / 'checkpoints' / 'step-1000000'}</code>" in text
    assert "Not finished" not in text


def test_several_runs_are_laid_over_each_other_in_their_own_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), [step_row(1, student_mass=0.5, overlap=0.25), step_row(2, student_mass=0.75)])
    write_run(Path("b"), [step_row(1, student_mass=None), step_row(2, student_mass=0.625)], config=OTHER)
    assert cli.main(["report", "a", "b"]) == 0
    found = figures(Path("comparison.html"))
    assert curve(found["Coverage: student's mass"], "a") == [(1, 0.5), (2, 0.75)]
    assert curve(found["Coverage: student's mass"], "b") == [(1, None), (2, 0.625)]
    assert curve(found["Coverage: overlap"], "a") == [(1, 0.25), (2, None)]
    assert len(found["Coverage: overlap"]["traces"]) == 1
    colours = {(t["name"], t["line"]["color"]) for figure in found.values() for t in figure["traces"]}
    assert colours == {("a", "--c0"), ("b", "--c1")}
    html = Path("comparison.html").read_text()
    assert re.findall(r'data-run="(\w+)"', html) == ["a", "b"]
    assert [row[0] for row in _cells(html, "outcomes")] == ["run", "a", "b"]
    assert [(row[1], row[4], row[5], row[6]) for row in _cells(html, "outcomes")[1:]] == [
        ("1.000 → 0.500", "0.500 → 0.750", "2 of 4", "4"),
        ("1.000 → 0.500", "0.625 → 0.625", "2 of 4", "4"),
    ]


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", [step_row(1)]),
        write_run(tmp_path / "b", [step_row(1)], config=OTHER),
    ]
    out = tmp_path / "out.html"
    assert cli.main(["report", *map(str, runs), "--output", str(out)]) == 0
    assert _cells(out.read_text(), "settings")[1:] == [["student.model", "small", "tiny"], ["run.seed", "not set", "3"]]
    twin = write_run(tmp_path / "c", [step_row(1)])
    assert cli.main(["report", str(runs[0]), str(twin), "--output", str(out)]) == 0
    assert "None, but for run.directory." in out.read_text()


def test_folders_of_one_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", [step_row(1)]) for parent in ("x", "<y>")]
    out = tmp_path / "out.html"
    assert cli.main(["report", *map(str, runs), "--output", str(out)]) == 0
    assert [trace["name"] for trace in figures(out)["Loss"]["traces"]] == ["x/run", "<y>/run"]
    assert "<y>" not in out.read_text()


def test_a_run_named_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", [step_row(1)])
    assert cli.main(["report", str(run), f"{run}/../a", "--output", str(tmp_path / "out.html")]) == 1
    assert "named twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no such folder"),
        ({}, "is no run: it holds no config.toml"),
        ({"config.toml": CONFIG}, "has no step in its metrics.jsonl yet"),
        ({"config.toml": CONFIG, "metrics.jsonl": '{"kind": "heldout", "step": 0}\n'}, "has no step in its metrics"),
        ({"config.toml": "[run", "metrics.jsonl": json.dumps(step_row(1)) + "\n"}, "config.toml cannot be read"),
        ({"config.toml": "[run]", "metrics.jsonl": json.dumps(step_row(1)) + "\n"}, "holds no settings of a run"),
        ({"config.toml": CONFIG, "metrics.jsonl": "{\n\n"}, "metrics.jsonl:1"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str] | None, message: str
) -> None:
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    assert cli.main(["report", str(folder)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"preceptor report: {folder}")
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "report.html").exists()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", [step_row(1)])
    assert cli.main(["report", str(run), "--output", str(tmp_path / "absent" / "out.html")]) == 1
    assert str(tmp_path / "absent") in capsys.readouterr().err


def test_help_says_what_is_written_and_no_torch_is_loaded() -> None:
    program = (
        "import sys; from preceptor_client.commands import report; import preceptor_client.train.report; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    arguments = [sys.executable, "-m", "preceptor_client.cli", "report", "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "comparison.html" in done.stdout
    assert "RUNS [RUNS ...]" in done.stdout
