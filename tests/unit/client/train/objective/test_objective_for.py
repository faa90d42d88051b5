"""Settings become an objective: options bound, and logprobs without a normaliser refused where one is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from preceptor_client.objectives.sampled_token import sampled_token
from preceptor_client.train.objective.checked import objective_for
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.seams import OBJECTIVES

from tests.unit.client.train.objective.cases import CONFIGS, objective, positions_of, random_pair


def test_every_kind_has_an_objective_of_its_name() -> None:
    for kind in OBJECTIVES.builtins:
        assert objective_for(ObjectiveConfig(kind=kind)).name == kind
    assert {config.kind for config in CONFIGS.values()} == set(OBJECTIVES.builtins)


@pytest.mark.parametrize("name", CONFIGS)
def test_logprobs_up_to_a_constant_do_for_renormalised_supports_and_are_refused_elsewhere(name: str) -> None:
    student_NV, teacher_NV = random_pair(3, 8)
    at = positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(4, dim=1).indices)
    shifted = replace(at, student_logprobs_NK=at.student_logprobs_NK + 5.0, is_normalised=False)
    made = objective(name)
    assert made.needs_normaliser is (name not in ("lsm", "forward, renormalise", "jsd, renormalise"))
    if made.needs_normaliser:
        with pytest.raises(ValueError, match=f"objective.kind={made.name} needs student logprobs"):
            made.loss(shifted)
    else:
        torch.testing.assert_close(made.loss(shifted), made.loss(at))


def test_clips_of_the_settings_reach_the_loss() -> None:
    student_NV, teacher_NV = random_pair(20, 8)
    at = positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(4, dim=1).indices)
    at = replace(at, old_logprobs_N=at.old_logprobs_N - torch.linspace(-3, 3, 20, dtype=torch.float64))
    made = objective_for(ObjectiveConfig(kind="sampled_token", options={"clip_range": 0.05, "dual_clip": 1.5}))
    columns = (at.student_sampled_logprobs_N, at.teacher_sampled_logprobs_N, at.old_logprobs_N)
    assert torch.equal(made.loss(at), sampled_token(*columns, clip_range=0.05, dual_clip=1.5))
    assert not torch.allclose(made.loss(at), sampled_token(*columns, clip_range=0.05, dual_clip=3.0))
    assert not torch.allclose(made.loss(at), sampled_token(*columns, clip_range=0.2, dual_clip=1.5))
