from __future__ import annotations

import io

from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.run.display import LiveDisplay, PlainDisplay, display_for
from rich.console import Console

ROW: MetricRow = {
    "kind": "step",
    "step": 2,
    "loss": 0.5,
    "student_mass": 0.9,
    "teacher_mass": 0.8,
    "step_seconds": 1.25,
}
HELDOUT: MetricRow = {
    "kind": "heldout",
    "step": 0,
    "num_correct": 3,
    "num_examples": 19,
    "mean_answer_length": 4.0,
}


def test_plain_lines_hold_the_numbers() -> None:
    file = io.StringIO()
    with display_for(Console(file=file, width=40)) as display:
        assert isinstance(display, PlainDisplay)
        display.heldout(HELDOUT)
        display.begin(step=1, num_steps=6)
        display.step(ROW)
        display.step({**ROW, "step": 3, "loss": None})
    lines = file.getvalue().splitlines()
    assert lines[0] == "held-out answers after step 0: 3 of 19 right, 4.0 tokens on average"
    assert lines[1] == "resumed after step 1 of 6"
    assert " ".join(lines[2].split()) == "step 2/6 loss 0.5000 support mass 0.900 (teacher 0.800) 1.2 s/step"
    assert "skipped" in lines[3]


def test_heldout_loss_is_shown_with_and_without_answers() -> None:
    file = io.StringIO()
    loss: MetricRow = {"loss": 0.25, "num_positions": 310, "scored_share": 0.75}
    display = PlainDisplay(Console(file=file, width=40))
    display.heldout({**HELDOUT, **loss})
    display.heldout({"kind": "heldout", "step": 2, "num_examples": 19, **loss})
    expected = "0.2500 over 310 positions, 75% of those asked for"
    assert file.getvalue().splitlines() == [
        "held-out answers after step 0: 3 of 19 right, 4.0 tokens on average",
        f"held-out loss after step 0: {expected}",
        f"held-out loss after step 2: {expected}",
    ]


def test_warning_stays_in_both_displays() -> None:
    for is_terminal in (False, True):
        file = io.StringIO()
        with display_for(Console(file=file, width=160, force_terminal=is_terminal)) as display:
            display.warning("[3] tokens have no counterpart")
        assert "warning: [3] tokens have no counterpart" in file.getvalue()


def test_plain_display_shows_an_outage_once_not_once_per_request() -> None:
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=200))
    for seconds in range(5):
        display.notice(f"teacher unreachable at a:1, waiting ({seconds} s of 60 s)")
    assert file.getvalue() == "teacher unreachable at a:1, waiting (0 s of 60 s)\n"


def test_live_display_shows_numbers_and_notice() -> None:
    file = io.StringIO()
    with display_for(Console(file=file, width=160, force_terminal=True)) as display:
        assert isinstance(display, LiveDisplay)
        display.begin(step=0, num_steps=6)
        display.step(ROW)
        display.notice("teacher unreachable at a:1, waiting (3 s of 60 s)")
        display._live.refresh()
    assert "loss 0.5000" in file.getvalue()
    assert "waiting (3 s of 60 s)" in file.getvalue()


def test_what_was_measured_of_a_task_is_named_after_it_metrics_of_the_users_own_too() -> None:
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    loss: MetricRow = {"loss": 0.25, "num_positions": 310, "scored_share": 0.75}
    display.heldout({**HELDOUT, **loss, "task": "law", "mean_reward": 0.5, "pass_rate": 0.125, "seconds": 3.0})
    display.heldout({**HELDOUT, "task": "law", "kind": "heldout_teacher"})
    display.heldout({"kind": "heldout", "step": 2, "num_examples": 19, "mean_reward": None})
    assert file.getvalue().splitlines() == [
        "held-out answers of law after step 0: 3 of 19 right, 4.0 tokens on average",
        "held-out loss of law after step 0: 0.2500 over 310 positions, 75% of those asked for",
        "held-out reward of law after step 0: 0.5 on average",
        "held-out metrics of law after step 0: pass_rate 0.125",
        "held-out answers of law after step 0 with the teacher's prompts: 3 of 19 right, 4.0 tokens on average",
        "held-out reward after step 2: - on average",
    ]


def test_a_step_with_rewards_shows_their_mean() -> None:
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=40))
    display.begin(step=0, num_steps=6)
    display.step({**ROW, "mean_reward": 0.375})
    assert "loss 0.5000  reward 0.375  support mass 0.900" in file.getvalue()


def test_heldout_metrics_are_shown_with_and_without_answers() -> None:
    file = io.StringIO()
    display = PlainDisplay(Console(file=file, width=200))
    display.heldout({**HELDOUT, "match_exact": 0.25, "odd": None})
    display.heldout({"kind": "heldout", "step": 2, "num_examples": 19, "mean_answer_length": 4.0, "tokens": 12.0})
    assert file.getvalue().splitlines()[1:] == [
        "held-out metrics after step 0: match_exact 0.25, odd -",
        "held-out metrics after step 2: tokens 12",
    ]
