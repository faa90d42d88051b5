"""The objective that docs/objectives.md shows runs as it stands there, named as its TOML does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
from preceptor_client.objectives.lsm import lsm
from preceptor_client.train.objective.checked import objective_for
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.seams import CREDITS, EXTRAPOLATIONS, OBJECTIVES, WEIGHTS
from preceptor_client.train.teacher.support import SUPPORTS

from tests.unit.client.train.objective.cases import positions_of, random_pair

PAGE = (Path(__file__).parents[5] / "docs/objectives.md").read_text(encoding="utf-8")


def test_the_page_shows_an_objective_that_is_the_scaled_reverse_kl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    settings = [tomllib.loads(text) for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)]
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    built_in, own = (ObjectiveConfig.model_validate(one["objective"]) for one in settings)
    assert (built_in.kind, own.kind) == ("jsd", "my_losses:Mine")
    student_NV, teacher_NV = random_pair(3, 8)
    at = positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(4, dim=1).indices)
    expected_N = 2.0 * lsm(at.student_logprobs_NK, at.teacher_logprobs_NK)
    torch.testing.assert_close(objective_for(own).loss(at), expected_N)
    made = own.make()
    assert (made.needs_normaliser, made.min_support) == (False, 2)


def test_the_page_names_every_part_that_is_built_in() -> None:
    for seam in (OBJECTIVES, SUPPORTS, WEIGHTS, CREDITS, EXTRAPOLATIONS):
        assert [name for name in seam.builtins if f"`{name}`" not in PAGE] == []
