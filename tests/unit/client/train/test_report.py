from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from preceptor_client.train.record.metrics import MetricRow, Metrics
from preceptor_client.train.record.summary import RunSummary, summarise
from preceptor_client.train.report import write_report
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.directory import claimed_directory
from preceptor_client.train.teacher.agreement import alignment_tables, save_agreement
from preceptor_client.types import PairedTokens, SpecialToken

from tests.unit.client.train.fake_scorer import REPORT, agreement_with
from tests.unit.client.train.tiny import tiny_student

EVIL = "<script>alert('x')</script>&"


def _heldout(step: int, answer: str, *, is_correct: bool, kind: str = "heldout") -> MetricRow:
    return {
        "kind": kind,
        "step": step,
        "accuracy": float(is_correct),
        "num_correct": int(is_correct),
        "num_examples": 1,
        "mean_answer_length": 3.0,
        "answers": [{"prompt": EVIL, "expected": "Oslo", "answer": answer, "is_correct": is_correct}],
    }


def _step(step: int, *, loss: float | None) -> MetricRow:
    numbers: MetricRow = dict.fromkeys(
        (
            "teacher_mass",
            "outside_share",
            "mean_response_length",
            "truncated_share",
            "rollout_seconds",
            "score_wait_seconds",
            "train_seconds",
            "step_seconds",
        ),
        0.5,
    )
    return {"kind": "step", "step": step, "loss": loss, "student_mass": None if loss is None else 0.5, **numbers}


def _summary(config: RunConfig, *rows: MetricRow) -> RunSummary:
    with claimed_directory(config) as directory, Metrics(directory, step=0) as metrics:
        for row in rows:
            metrics.write(row)
    return summarise(directory, model_folder=directory / "checkpoints" / "step-000002")


@pytest.fixture
def report(config: RunConfig, tmp_path: Path) -> str:
    summary = _summary(
        config,
        _heldout(0, EVIL, is_correct=False),
        _heldout(0, "Oslo!", is_correct=True, kind="heldout_teacher"),
        _step(1, loss=0.75),
        _step(2, loss=None),
        _step(3, loss=0.25),
        _heldout(3, "Oslo.", is_correct=True),
    )
    write_report(tmp_path / "report.html", run=summary)
    return (tmp_path / "report.html").read_text()


def _without_scripts(report: str) -> str:
    return re.sub(r"<script[^>]*>.*?</script>", "", report, flags=re.DOTALL)


def test_report_loads_nothing_from_elsewhere(report: str) -> None:
    assert not re.findall(r"<(?:script|link|img|iframe|source)[^>]*(?:src|href)\s*=", _without_scripts(report))
    assert not re.findall(r"<script[^>]+>", report[: report.index("<main>")])
    assert "Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline';" in report
    assert "@import" not in _without_scripts(report)
    assert "url(" not in _without_scripts(report)
    assert "Plotly.react(" in report


def test_text_of_models_is_escaped(report: str) -> None:
    assert EVIL not in report
    assert _without_scripts(report).count(html.escape(EVIL).replace("&#x27;", "&#39;")) == 2


def test_headline_figures_are_there(report: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", _without_scripts(report)))
    assert "0 of 1 held-out answers right before" in text
    assert "1 of 1 held-out answers right after" in text
    assert "1 of 1 untrained, with the teacher's prompts" in html.unescape(text)
    assert "0.750 → 0.250" in text
    assert "3 steps, 1 skipped" in text
    assert "optimizer.learning_rate" in text


def test_report_of_a_run_without_heldout_is_written(config: RunConfig, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", run=_summary(config, _step(1, loss=None)))
    assert "Held-out" not in _without_scripts((tmp_path / "report.html").read_text())


def _loss_row(step: int, loss: float) -> MetricRow:
    numbers: MetricRow = {"num_examples": 3, "loss": loss, "num_positions": 9, "scored_share": 0.5}
    return {"kind": "heldout", "step": step, **numbers}


def test_heldout_loss_without_answers_is_summed_up_and_plotted(config: RunConfig, tmp_path: Path) -> None:
    summary = _summary(config, _loss_row(0, 1.5), _step(1, loss=1.0), _loss_row(1, 0.5))
    assert (summary.heldout_loss_before, summary.heldout_loss_after) == (1.5, 0.5)
    assert (summary.heldout_total, summary.heldout_before, summary.samples) == (None, None, ())
    write_report(tmp_path / "report.html", run=summary)
    text = _without_scripts((tmp_path / "report.html").read_text())
    assert "1.500 → 0.500" in text
    assert "<h3>Held-out loss</h3>" in text
    assert "<h3>Held-out accuracy</h3>" not in text
    assert "<h2>Held-out answers</h2>" not in text


def test_what_was_agreed_about_tokens_is_in_the_report(config: RunConfig, tmp_path: Path) -> None:
    summary = _summary(config, _step(1, loss=1.0))
    end = SpecialToken(id=2, text="<|im_end|>")
    pair = PairedTokens(student=end, teacher=SpecialToken(id=7, text="<eos>"), reason="end of response")
    masked = tuple(SpecialToken(id=index, text=f"<{index}>") for index in range(14))
    report = replace(REPORT, paired=(pair,), masked=masked, mapped_share=0.5)
    agreement = replace(agreement_with(tiny_student(), report=report), warnings=("<b>merges</b> differ",))
    save_agreement(summary.directory, agreement)
    rows = dict(alignment_tables(summary.directory)[""])
    assert rows["vocabularies"] == "identical; ids correspond one to one"
    assert rows["segmentation"] == "mask"
    assert rows["student's tokens with a counterpart"] == "50.00%"
    assert rows["paired although their texts differ"] == "<|im_end|> = <eos> (end of response)"
    assert rows["student's special tokens without a score"].endswith("<11> (11), and 2 more")
    assert "teacher's special tokens without a place" not in rows
    write_report(tmp_path / "report.html", run=summary)
    assert "&lt;b&gt;merges&lt;/b&gt; differ" in (tmp_path / "report.html").read_text()


def test_summary_holds_first_and_last(config: RunConfig) -> None:
    summary = _summary(
        config,
        _heldout(0, "no", is_correct=False),
        _step(1, loss=2.0),
        _step(2, loss=1.0),
        _heldout(2, "Oslo", is_correct=True),
    )
    assert (summary.loss_first, summary.loss_last, summary.seconds) == (2.0, 1.0, 1.0)
    assert (summary.heldout_before, summary.heldout_after, summary.heldout_total) == (0, 1, 1)
    assert (summary.samples[0].before, summary.samples[0].after) == ("no", "Oslo")
    assert summary.heldout_teacher is None
