"""The token-level view: what the page embeds, and that no text of a model can leave its place."""

from __future__ import annotations

import re
from pathlib import Path

from preceptor_client.train.record.rollout_log import RolloutRow, TokenRow
from preceptor_client.train.report import read_run, write_report

from tests.unit.client.train.reports import curve, embedded, figures, step_row, write_run

HOSTILE = "</script><script>alert(1)</script><b>\u2028&amp;'\"<!--\u202e\x00{{ run }}"


def _token(text: str, **scores: object) -> TokenRow:
    token: TokenRow = {"text": text, "id": 7, "status": "ok", "student_logprob": -1.0}
    return token | scores  # type: ignore[return-value]  # the scored part, as in the file


def _scored(text: str, *, teacher_logprob: float | None) -> TokenRow:
    signal = None if teacher_logprob is None else teacher_logprob + 1.0
    return _token(
        text, teacher_logprob=teacher_logprob, signal=signal, loss=0.5, support=[[text, 0.25]], tail_mass=0.125
    )


def _rollout(step: int, *tokens: TokenRow, task: str = "") -> RolloutRow:
    return {
        "step": step,
        "slot": 0,
        "task": task,
        "prompt": HOSTILE,
        "finish_reason": "stop",
        "tokens": list(tokens),
    }


def _report(directory: Path, *rollouts: RolloutRow) -> Path:
    write_run(directory, [step_row(1)], rollouts=rollouts)
    write_report(directory / "report.html", run=read_run(directory).summary)
    return directory / "report.html"


def test_the_page_embeds_the_rollouts_as_they_are(tmp_path: Path) -> None:
    rows = [
        _rollout(1, _scored("a", teacher_logprob=-2.0), _token("b")),
        _rollout(4, _scored("c", teacher_logprob=None)),
    ]
    page = _report(tmp_path, *rows)
    assert embedded(page, "rollouts") == rows
    assert 'role="listbox" tabindex="0"' in page.read_text()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    row = _rollout(1, _scored(HOSTILE, teacher_logprob=-2.0), _token(HOSTILE), task=HOSTILE)
    page = _report(tmp_path, row)
    assert embedded(page, "rollouts") == [row]
    text = page.read_text()
    assert "alert(1)</script>" not in text
    assert "\u2028" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # plotly.js has one of its own
    plain = _report(tmp_path / "plain", _rollout(1, _scored("a", teacher_logprob=-2.0), _token("b"))).read_text()
    assert text.count("<script") == plain.count("<script")
    assert text.count("<b>") == plain.count("<b>")


def test_tokens_of_the_first_and_the_last_step_are_plotted_student_against_teacher(tmp_path: Path) -> None:
    page = _report(
        tmp_path,
        _rollout(1, _scored("a", teacher_logprob=-2.0), _token("no score")),
        _rollout(2, _scored("b", teacher_logprob=-9.0)),
        _rollout(3, _scored("c", teacher_logprob=-1.5), _scored("impossible", teacher_logprob=None)),
    )
    figure = figures(page)["Student against teacher, token by token"]
    assert curve(figure, "step 1") == [(-1.0, -2.0)]
    assert curve(figure, "step 3") == [(-1.0, -1.5)]
    assert [trace["name"] for trace in figure["traces"]] == ["step 1", "step 3", "equal"]


def test_rollouts_without_a_score_have_no_such_plot(tmp_path: Path) -> None:
    page = _report(tmp_path, _rollout(1, _token("no score")), _rollout(2))
    assert "Student against teacher, token by token" not in figures(page)
    assert embedded(page, "rollouts")[1]["tokens"] == []
