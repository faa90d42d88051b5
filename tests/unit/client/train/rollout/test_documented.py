"""What docs/rollouts.md tells people to write, read by what reads it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from preceptor_client.train.data.reading import json_lines
from preceptor_client.train.evaluation.metric import METRIC
from preceptor_client.train.parts import PartConfig, Seam, checked_options
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.engine import ENGINES
from preceptor_client.train.rollout.episode_rows import KEYS, parse_episode
from preceptor_client.train.rollout.mixed import MixedPart
from preceptor_client.train.rollout.rewards import REWARD
from preceptor_client.train.run.hooks import HOOK

DOCUMENT = (Path(__file__).parents[5] / "docs" / "rollouts.md").read_text()
SEAMS: Mapping[str, Seam[Any]] = {"rewards": REWARD, "metrics": METRIC, "hooks": HOOK}  # Any: of several kinds


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


def check_part(seam: Seam[Any], part: PartConfig) -> None:
    checked_options(seam.find(part.kind, key="kind"), part.options, key="options")


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_name_parts_that_are_there_with_options_that_they_take(text: str) -> None:
    settings = tomllib.loads(text)
    if rollout := settings.pop("rollout", None):
        config = RolloutConfig(prompts_per_step=1, max_new_tokens=1, **rollout)
        check_part(ENGINES, PartConfig(kind=config.engine, options=config.engine_options))
        for part in rollout["engine_options"].get("parts", []):
            check_part(ENGINES, MixedPart(**part))
        return
    lists = settings.pop("evaluation", settings)
    assert lists.keys() <= SEAMS.keys()
    for name, parts in lists.items():
        for part in parts:
            check_part(SEAMS[name], PartConfig(**part))


@pytest.mark.parametrize("text", blocks("python"))
def test_classes_fit_a_seam(text: str) -> None:
    names: dict[str, Any] = {"__name__": "documented"}
    exec(text, names)  # our own document
    (written,) = [one for one in names.values() if isinstance(one, type)]
    globals()[written.__name__] = written
    seams: Mapping[str, Seam[Any]] = {"Short": REWARD, "Commas": METRIC, "Watch": HOOK}
    assert seams[written.__name__].find(f"{__name__}:{written.__name__}", key="kind") is written


def test_lines_of_the_file_are_read_and_every_key_is_described(tmp_path: Path) -> None:
    (text,) = blocks("jsonl")
    path = tmp_path / "episodes.jsonl"
    path.write_text(text)
    rows = [parse_episode(line.fields(), index=line.index, where=line.where) for line in json_lines(path)]
    assert [row.reward for row in rows] == [1.0, None, (0.0, None, 1.0)]
    assert rows[2].segments[2].logprobs == (-0.5, -0.1)
    described = set(re.findall(r"`(\w+)`", DOCUMENT))
    assert set(KEYS) <= described
