"""Shows what a teacher thinks of one response, token by token; whichever way it was asked."""

# N = scored positions, K = support size

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from preceptor.wire import PositionStatus
from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from preceptor_client.commands.status_words import WHY_NO_SCORE
from preceptor_client.types import GroupScores, ResponseScores

_HEADINGS = ("pos", "token", "logprob", "prob.", "rank", "mass", "entropy")
"""Short, so that the likeliest tokens have room on a terminal of 80 columns. mass: of the support."""


class DescribedTeacher(Protocol):
    """What the headline says of a teacher."""

    @property
    def model(self) -> str: ...

    @property
    def engine(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a teacher thinks of one response, and how to say it."""

    scores: GroupScores
    teacher: DescribedTeacher
    response_ids: Sequence[int]
    shown_text: Callable[[int], str]
    """A token's text as it is shown: in quotes, so that spaces and newlines are seen; in angle brackets where it has
    none."""


def show_opinion(opinion: Opinion, *, console: Console, num_likeliest: int) -> None:
    """The headline and the table."""
    console.print(headline(opinion.scores, teacher=opinion.teacher), markup=False, highlight=False)
    console.print(score_table(opinion, num_likeliest=num_likeliest))


def headline(scores: GroupScores, *, teacher: DescribedTeacher) -> str:
    """Who answered, on what, and where the time went."""
    timings = scores.timings
    return (
        f"teacher {scores.teacher} ({teacher.model}, {teacher.engine}, {teacher.dtype} on {teacher.device}), revision "
        f"{scores.revision}, segmentation {scores.segmentation.name.lower()}, prompt of {len(scores.prompt_ids)} "
        f"tokens, queue {timings.queue_ms:.1f} ms, "
        f"forward {timings.forward_ms:.1f} ms, total {timings.total_ms:.1f} ms"
    )


def score_table(opinion: Opinion, *, num_likeliest: int) -> Table:
    """One row per response token: what the teacher gave it, and what it would have said."""
    response = opinion.scores.responses[0]
    table = Table()
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading == "token" else "right")
    table.add_column("the teacher would say")
    row_of_position = {int(position): row for row, position in enumerate(response.positions_N)}
    for position, token in enumerate(opinion.response_ids):
        row = row_of_position.get(position)
        if row is None:
            why = WHY_NO_SCORE[PositionStatus(response.status_T[position])]
            numbers, last = ["-"] * 5, f"no score: {why}"
        else:
            numbers, last = _numbers(response, row, token), _likeliest(opinion, row, num_likeliest=num_likeliest)
        # Cells rather than markup: "[" in a token shall show.
        table.add_row(str(position), Cell(opinion.shown_text(token)), *numbers, Cell(last))
    return table


def _numbers(response: ResponseScores, row: int, token: int) -> list[str]:
    """Logprob, probability, rank, support mass and entropy."""
    logprob = float(response.sampled_logprobs_N[row])
    # What is -inf fills the row up and is no part of the support.
    is_inside_K = np.isfinite(response.support_logprobs_NK[row])
    ranks = np.flatnonzero(response.support_ids_NK[row][is_inside_K] == token)
    return [
        f"{logprob:.3f}",
        f"{math.exp(logprob):.4f}",
        str(ranks[0] + 1) if ranks.size else "-",
        f"{1.0 - math.exp(float(response.log_tail_mass_N[row])):.4f}",
        "-" if response.entropies_N is None else f"{float(response.entropies_N[row]):.3f}",
    ]


def _likeliest(opinion: Opinion, row: int, *, num_likeliest: int) -> str:
    response = opinion.scores.responses[0]
    ids_K, logprobs_K = response.support_ids_NK[row], response.support_logprobs_NK[row]
    inside = np.flatnonzero(np.isfinite(logprobs_K))[:num_likeliest]
    return "  ".join(f"{opinion.shown_text(int(ids_K[k]))} {math.exp(logprobs_K[k]):.3f}" for k in inside)
