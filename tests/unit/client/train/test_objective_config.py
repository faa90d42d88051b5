from __future__ import annotations

from typing import Any

import pytest
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.seams import OBJECTIVES
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sampled_token", "support": "union"}, "objective.support does not apply to sampled_token"),
        ({"kind": "full_vocabulary", "include_sampled": True}, "objective.include_sampled does not apply"),
        ({"kind": "ema_pg", "include_sampled": True}, "does not fit ema_pg"),
        ({"kind": "lsm", "options": {"beta": 0.1}}, "objective.options.beta: Lsm has no such option; it has: none"),
        (
            {"kind": "tail_bucket", "options": {"outside": "truncate"}},
            "options.outside: TailBucket has no such",
        ),
        ({"kind": "jsd", "options": {"clip_range": 0.1}}, "objective.options.clip_range: Jsd has no such option"),
        (
            {"support": "teacher", "support_options": {"top_p": 0.5}},
            "support_options.top_p: TeacherSupport has no",
        ),
        ({"kind": "tail_bucket", "extrapolation": 1.25}, "needs kind=lsm or sampled_token"),
        ({"kind": "jsd", "options": {"beta": 1.0}}, "objective.options: jsd refuses them: beta=1.0 .* less than 1"),
        ({"kind": "kl"}, "objective.kind='kl' is not an objective: write one of lsm, "),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig.model_validate(settings)


def test_settings_at_their_defaults_are_accepted_for_every_kind() -> None:
    """As a run's own config.toml gives them back."""
    for kind in OBJECTIVES.builtins:
        settings = ObjectiveConfig(kind=kind).model_dump()
        assert ObjectiveConfig.model_validate(settings).kind == kind


@pytest.mark.parametrize(
    ("settings", "needs_normaliser", "min_support"),
    [
        ({"kind": "lsm"}, False, 2),
        ({"kind": "forward", "options": {"outside": "renormalise"}}, False, 2),
        ({"kind": "jsd", "options": {"outside": "renormalise"}}, False, 2),
        ({"kind": "forward"}, True, 1),
        ({"kind": "tail_bucket"}, True, 1),
        ({"kind": "sampled_token"}, True, 1),
        ({"kind": "full_vocabulary"}, True, 2),
    ],
)
def test_renormalising_losses_need_two_tokens_and_no_normaliser(
    settings: dict[str, Any], needs_normaliser: bool, min_support: int
) -> None:
    made = ObjectiveConfig.model_validate(settings).make()
    assert (made.needs_normaliser, made.min_support) == (needs_normaliser, min_support)
