"""Lays out one recorded request as a line, and the state of a server as another. Prints nothing, asks nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

from rich.text import Text

from preceptor_client.http.answers import Record, Stats

_CALLER_WIDTH = 18
_OUTCOME_WIDTH = 7
_OK = "ok"


def heading() -> Text:
    """The names of the columns of `record_line`."""
    return Text(
        f"{'time':8}  {'caller':{_CALLER_WIDTH}}  {'via':4}  {'positions':>9}  {'K':>4}  {'temp':>4}  "
        f"{'logprob':>8}  {'ms':>8}  {'outcome':{_OUTCOME_WIDTH}}  prompt",
        style="dim",
    )


def record_line(record: Record) -> Text:
    """When, who, how, how much (all positions, in so many responses), K, temperature, the mean logprob of the sampled
    tokens, the milliseconds, what came of it, and how the prompt begins. What others wrote is shown without its
    control characters: it may not move the cursor of whoever looks on."""
    time = datetime.fromtimestamp(record.at).strftime("%H:%M:%S")
    logprob = "-" if record.mean_sampled_logprob is None else f"{record.mean_sampled_logprob:.3f}"
    size = f"{record.num_positions} in {record.num_responses}"
    outcome = visible(record.outcome)
    return Text.assemble(
        (time, "dim"),
        f"  {_cut(visible(record.caller), _CALLER_WIDTH):{_CALLER_WIDTH}}  {visible(record.transport):4}  {size:>9}  "
        f"{record.top_k:>4}  {record.temperature:>4g}  {logprob:>8}  {record.total_ms:>8.1f}  ",
        (f"{outcome:{_OUTCOME_WIDTH}}", "green" if outcome == _OK else "red"),
        f"  {visible(record.preview)}",
    )


def json_line(record: Record) -> str:
    """The record for programs: one JSON object, without line breaks."""
    return json.dumps(asdict(record))


def status_line(stats: Stats) -> Text:
    """The queue and the throughput."""
    parts = [
        "serving" if stats.is_serving else "not serving",
        f"queue {stats.queue_groups} groups, {stats.queue_tokens:,} of {stats.max_queue_tokens:,} tokens",
        f"{stats.tokens_in_flight:,} tokens in flight",
        f"{stats.positions_per_second:,.1f} positions/s",
        f"{stats.requests_total:,} requests, {stats.failed_total:,} failed",
    ]
    return Text(" | ".join(parts), style="dim" if stats.is_serving else "bold red")


def visible(text: str) -> str:
    """`text` on one line: a character that cannot be printed as its escape, such as \\n or \\x1b."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
