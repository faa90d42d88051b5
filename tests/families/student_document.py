"""Writes docs/student_families.md: what becomes of every family of the zoo that is trained as a student."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.families.small import MAX_MODEL_LEN
from tests.families.student import NUM_NEW, REFUSED, TOLERANCE_NATS, StudentOutcome
from tests.families.zoo import FAMILIES

PATH = Path(__file__).parents[2] / "docs" / "student_families.md"


def is_complete(outcomes: Mapping[str, StudentOutcome]) -> bool:
    """Whether every family was tried."""
    return outcomes.keys() == FAMILIES.keys()


def document(outcomes: Mapping[str, StudentOutcome]) -> str:
    """The whole text."""
    return "\n".join([_HEAD, *_counts(outcomes), *_table(outcomes), *_refusals(outcomes)])


def student_rows(outcomes: Mapping[str, StudentOutcome]) -> Iterator[tuple[str, str, str, str]]:
    """Family; how its prompts are answered, or that it is refused; how it is trained; the largest difference, nats."""
    for name, outcome in sorted(outcomes.items()):
        until = "" if outcome.longest == MAX_MODEL_LEN else f", up to {outcome.longest} tokens"
        largest = "" if outcome.writing == REFUSED else f"{outcome.largest_nats:.0e}"
        yield name, f"{outcome.writing}{until}", outcome.training, largest


_HEAD = f"""# Model families as students

Made by `make test-families`; do not edit. A tiny random model of every family that transformers' causal-LM mapping
knows, of some checkpoints with vision, and of variants, is loaded as a student. It answers prompts of unlike lengths
in batches, {NUM_NEW} tokens each: before, at and past every length that its config names, drawn and greedily, with a
common beginning and without. What it recorded of each token, and the logits of the states that it would be trained on,
are held against a plain forward of transformers over that prompt and response alone, in fp32: at most
{TOLERANCE_NATS:g} nats. Then it is saved and loaded, with equal logits.

The ways of a student are found at start, by trying them (`client/preceptor_client/train/student/ways.py`): no family is
named there. A family whose numbers change where a text grows past some length (ropes of the types longrope and dynamic)
is refused beyond it.
"""


def _counts(outcomes: Mapping[str, StudentOutcome]) -> Iterator[str]:
    for what, ways in (
        ("prompts are answered", Counter(outcome.writing for outcome in outcomes.values())),
        ("responses are trained on", Counter(outcome.training for outcome in outcomes.values() if outcome.training)),
    ):
        yield f"| {what} | models |"
        yield "|---|---|"
        yield from (f"| {way} | {count} |" for way, count in ways.most_common())
        yield ""


def _table(outcomes: Mapping[str, StudentOutcome]) -> Iterator[str]:
    yield "| family | answers prompts | is trained | largest difference, nats |"
    yield "|---|---|---|---|"
    yield from (f"| {' | '.join(row)} |" for row in student_rows(outcomes))
    yield ""


def _refusals(outcomes: Mapping[str, StudentOutcome]) -> Iterator[str]:
    yield "## Refused"
    yield ""
    yield from (f"- {name}: {one.message}" for name, one in sorted(outcomes.items()) if one.writing == REFUSED)
    yield ""
