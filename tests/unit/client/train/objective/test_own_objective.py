"""An objective of a user's own: one class, named in the settings; what it does wrong is told by the setting's name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from preceptor_client.objectives.lsm import lsm
from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.checked import objective_for
from preceptor_client.train.objective.config import CreditConfig, ObjectiveConfig
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.student.student import Student
from pydantic import ValidationError

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.objective.cases import positions_of, random_pair
from tests.unit.client.train.objective.episodes import context, episode, random_turns, scored_by

OWN = "tests.unit.client.train.objective.own"


def _config(name: str, **settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig.model_validate({"kind": f"{OWN}:{name}", **settings})


def test_an_own_objective_is_made_with_its_options_and_reads_the_turns(student: Student, scorer: FakeScorer) -> None:
    config = _config("LateReverseKl", options={"scale": 3.0, "from_turn": 1})
    made = config.make()
    assert (made.needs_normaliser, made.min_support) == (False, 2)
    scored = scored_by(scorer, [episode(student, *random_turns(0, 3, 4))], objective=config)
    losses_N = Loss(student, config=config, temperature=1.0).of(scored).losses_N
    plain_N = Loss(student, config=ObjectiveConfig(), temperature=1.0).of(scored).losses_N
    expected_N = 3.0 * plain_N * torch.tensor([0] * 3 + [1] * 4)
    torch.testing.assert_close(losses_N, expected_N, rtol=1e-4, atol=1e-6)
    assert (plain_N > 1e-3).all()


def test_an_own_objective_reads_the_credit(student: Student, scorer: FakeScorer) -> None:
    credit = CreditConfig(kind="grpo")
    episodes = [
        episode(student, *random_turns(index, 3), sample=index, reward=reward) for index, reward in enumerate((1, 0))
    ]
    scored = scored_by(scorer, episodes)
    shaped = Shaping.of_settings(objective=ObjectiveConfig(), credit=credit).shape(scored, context(student)).scored
    loss = Loss(student, config=_config("OfAdvantage"), temperature=1.0, credit=credit)
    advantage = 0.5 / (0.5**0.5 + 1e-6)
    signs = [-advantage] * 3 + [advantage] * 3
    logprobs = [float(one) for each in episodes for one in each.student.logprobs_T]
    expected = [sign * logprob for sign, logprob in zip(signs, logprobs, strict=True)]
    assert loss.of(shaped).losses_N.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": f"{OWN}:NotDerived"}, "derive the class from preceptor_client.objectives.Objective"),
        ({"kind": f"{OWN}:Nothing"}, "objective.kind='tests.*own:Nothing': .* has no 'Nothing'"),
        ({"kind": f"{OWN}:EvenTurns"}, r"is not an objective: EvenTurns has no method loss"),
        ({"kind": "no_such_module:Mine"}, "objective.kind='no_such_module:Mine': there is no module 'no_such_module'"),
        (
            {"kind": f"{OWN}:LateReverseKl", "options": {"sclae": 1}},
            "objective.options.sclae: LateReverseKl has no such option; it has: scale, from_turn",
        ),
        ({"kind": f"{OWN}:LateReverseKl", "options": {"scale": "much"}}, "objective.options.scale: .* was 'much'"),
    ],
)
def test_a_name_that_is_no_objective_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Failing", r"objective.kind=.*own:Failing: failed: KeyError\('nothing here'\) \(positions: student \(3, 4\)"),
        ("Scalar", r"Scalar.loss gave shape \(\): give \(3,\), one loss per position"),
        ("Detached", "Detached.loss gave a loss without gradient"),
    ],
)
def test_an_own_objective_that_goes_wrong_is_named_with_its_positions(name: str, message: str) -> None:
    student_NV, teacher_NV = random_pair(3, 8)
    at = positions_of(student_NV.requires_grad_(), teacher_NV, ids_NK=teacher_NV.topk(4, dim=1).indices)
    with pytest.raises(InvalidPartError, match=message):
        objective_for(_config(name)).loss(at)


def test_without_gradients_a_constant_is_a_loss() -> None:
    student_NV, teacher_NV = random_pair(3, 8)
    at = positions_of(student_NV, teacher_NV, ids_NK=teacher_NV.topk(4, dim=1).indices)
    assert torch.equal(objective_for(_config("Detached")).loss(at), at.student_sampled_logprobs_N)
    built_in_N = objective_for(ObjectiveConfig()).loss(at)
    assert torch.equal(built_in_N, lsm(at.student_logprobs_NK, at.teacher_logprobs_NK))


def test_objectives_import_torch_and_nothing_of_the_trainer() -> None:
    code = (
        "import sys, preceptor_client.objectives\n"
        "assert 'torch' in sys.modules\n"
        "found = [name for name in sys.modules if name.startswith(('transformers', 'preceptor_client.train'))]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_the_loss_import_torch_only_where_they_are_set() -> None:
    code = (
        "import sys\n"
        "from preceptor_client.train.objective.config import ObjectiveConfig\n"
        "ObjectiveConfig()\n"
        "assert 'torch' not in sys.modules\n"
        "ObjectiveConfig(kind='jsd')\n"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
