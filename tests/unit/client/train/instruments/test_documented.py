from __future__ import annotations

import re
from pathlib import Path

import pytest
from preceptor_client.train.instruments import bounds
from preceptor_client.train.instruments.breakdown import BUCKET_STARTS, TURN_STARTS
from preceptor_client.train.instruments.measures import measure
from preceptor_client.train.instruments.table import position_table
from preceptor_client.train.run.config import RunConfig

DOCUMENT = (Path(__file__).parents[5] / "docs" / "instruments.md").read_text(encoding="utf-8")
VERDICTS = (Path(bounds.__file__).parent / "verdicts.py").read_text(encoding="utf-8")


def test_every_measure_is_documented() -> None:
    told = set(re.findall(r"`([a-z_0-9]+)`", DOCUMENT))
    # The quantiles are told by their first and last.
    between = {"gap_q05", "gap_q25", "gap_q50", "gap_q75", "gap_q95"}
    assert set(measure(position_table([], [], end_token_ids=[]))) - between <= told


def test_buckets_are_those_of_the_document() -> None:
    [listed] = re.findall(r"group = ([0-9,\s-]+)`", DOCUMENT)
    assert [int(label.split("-")[0]) for label in listed.split(",")] == list(BUCKET_STARTS)


def test_turns_are_those_of_the_document() -> None:
    [listed] = re.findall(r"\| `turn` \| ([^|]+) \|", DOCUMENT)
    assert [int(label.strip(" `").split("-")[0]) for label in listed.split(",")] == list(TURN_STARTS)


@pytest.mark.parametrize("text", [DOCUMENT, VERDICTS], ids=["document", "verdicts"])
def test_settings_that_are_named_exist(text: str) -> None:
    named = set(re.findall(r"(?<!\.)\b(rollout|teacher|objective)\.([a-z_]+)\b", text))
    assert len(named) > 5
    for section, name in named:
        assert name in RunConfig.model_fields[section].annotation.model_fields, f"{section}.{name}"  # type: ignore[union-attr]
