"""Writes docs/families.md: what becomes of every family of the zoo that is given to the server as a teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.families.listed import LISTED
from tests.families.outcome import TOLERANCE_NATS, TOP_K, Kind, Outcome
from tests.families.zoo import FAMILIES, Family

PATH = Path(__file__).parents[2] / "docs" / "families.md"

_MEANINGS: dict[Kind, str] = {
    "exact packed": "all groups of a batch in one forward, shared prefixes once",
    "exact sequential": 'a forward for each response: `engine.packing = "auto"` falls back to it by itself',
    "refused": "the server does not start, and says why",
    "fails": "an answer is wrong, or the server fails in another way than by a refusal: a defect",
}


def is_complete(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether every family was tried."""
    return outcomes.keys() == FAMILIES.keys()


def document(outcomes: Mapping[str, Outcome]) -> str:
    """The whole text."""
    return "\n".join([_HEAD, *_counts(outcomes), *_table(outcomes), *_refusals(outcomes), *_listed()]) + "\n"


_HEAD = f"""# Model families

Made by `make test-families`; do not edit. A tiny random model of every family that transformers' causal-LM mapping
knows, of some checkpoints with vision, and of variants, is served by the hf engine with its default settings and asked
over gRPC: prompts and responses on both sides of every length that its config names, several responses to a prompt,
prompts that share a beginning; alone and in one batch. Every column of every answer is held against a plain forward of
transformers over that sequence alone, in fp32: K = {TOP_K}, at most {TOLERANCE_NATS:g} nats.
"""


def _counts(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    counts = Counter(outcome.kind for outcome in outcomes.values())
    yield "| outcome | models | which means |"
    yield "|---|---|---|"
    for kind, meaning in _MEANINGS.items():
        yield f"| {kind} | {counts[kind]} | {meaning} |"
    yield f"| listed | {len(LISTED)} | not built, for the reasons below |"
    yield ""


def _table(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    yield "| family | model class | outcome | largest difference, nats | what is on |"
    yield "|---|---|---|---|---|"
    for name, outcome in sorted(outcomes.items()):
        yield _row(FAMILIES[name], outcome)
    yield ""


def _row(family: Family, outcome: Outcome) -> str:
    largest = f"{outcome.largest_nats:.0e}" if outcome.kind.startswith("exact") else ""
    features = "; ".join(outcome.features or family.features)
    return f"| {family.name} | {family.model_class} | {outcome.kind} | {largest} | {features} |"


def _refusals(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    refused = {name: outcome for name, outcome in sorted(outcomes.items()) if outcome.kind == "refused"}
    if refused:
        yield "## Refused"
        yield ""
        yield from (f"- {name}: {outcome.message}" for name, outcome in refused.items())
        yield ""


def _listed() -> Iterator[str]:
    yield "## Not built"
    yield ""
    yield from (f"- {name}: {reason}" for name, reason in sorted(LISTED.items()))
