"""How `preceptor tail` lays out a request and the state of a server, and where it writes them."""

from __future__ import annotations

import io
from datetime import datetime

from preceptor_client.commands.tail_screen import Screen
from preceptor_client.commands.tail_view import heading, record_line, status_line, visible
from preceptor_client.http.answers import Record, Stats
from preceptor_client.retry import RetryEvent
from rich.console import Console

from tests.unit.client.http.scripted_http import STATS, record
from tests.unit.client.http.scripted_topk import Json


def clock(number: int) -> str:
    return datetime.fromtimestamp(record(number)["at"]).strftime("%H:%M:%S")


def line(**changes: Json) -> str:
    return record_line(Record(**record(1, **changes))).plain


def test_a_failed_request_shows_its_reason_and_no_logprob() -> None:
    shown = line(outcome="QUEUE_FULL", mean_sampled_logprob=None, num_positions=0, temperature=0.25)
    assert shown.split()[3:11] == ["0", "in", "4", "32", "0.25", "-", "41.2", "QUEUE_FULL"]


def test_what_others_wrote_cannot_leave_its_line() -> None:
    shown = line(caller="\x1b[2J" + "c" * 30, preview="a\nb\x1b]0;title\x07\u202e[bold]é", transport="http")
    assert "\x1b" not in shown
    assert "\n" not in shown
    assert r"a\nb\x1b]0;title\x07\u202e[bold]é" in shown
    assert shown.index("http") == heading().plain.index("via")


def test_visible_leaves_what_can_be_printed() -> None:
    assert visible("naïve 日本 [x] 'q'") == "naïve 日本 [x] 'q'"
    assert visible("\t\r\x00\ud800") == r"\t\r\x00\ud800"


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_status_line_says_what_waits_and_how_fast_it_goes() -> None:
    shown = status_line(Stats(**STATS))  # type: ignore[arg-type]  # as in the answer
    assert shown.plain == (
        "serving | queue 3 groups, 1,200 of 65,536 tokens | 4,096 tokens in flight | 512.2 positions/s | "
        "12,345 requests, 2 failed"
    )
    assert status_line(Stats(**{**STATS, "is_serving": False})).plain.startswith("not serving | ")  # type: ignore[arg-type]


def test_a_terminal_has_a_status_line_and_one_line_a_request_however_narrow() -> None:
    console = terminal(width=60)
    with Screen(as_json=False, console=console) as screen:
        assert screen.has_status
        screen.record(Record(**record(1)))
        screen.status(Stats(**STATS))  # type: ignore[arg-type]  # as in the answer
    text = written(console)
    assert "serving | queue 3 groups" in text
    [shown] = [part for part in text.splitlines() if clock(1) in part]
    assert shown.rstrip().endswith("…")


def test_an_outage_shows_in_the_status_line() -> None:
    console = terminal()
    event = RetryEvent(
        attempt=2, elapsed_seconds=3.0, next_delay_seconds=1.5, code="", message="no answer (x)", address="http://a:1"
    )
    with Screen(as_json=False, console=console) as screen:
        screen.no_answer(event)
        screen.no_answer(event)
        screen.answered()
        screen.answered()
    text = written(console)
    assert text.count("http://a:1: no answer (x); asking again") == 1
    assert "no answer for 3 s, asking again in 1.5 s" in text
    assert text.count("the server answers again") == 1


def test_json_has_no_status_line_even_on_a_terminal() -> None:
    assert not Screen(as_json=True, console=terminal()).has_status
