from __future__ import annotations

from typing import Any, get_args

import pytest
from preceptor_client.train.objective.config import ObjectiveConfig, ObjectiveKind
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sampled_token", "support": "union"}, "objective.support does not apply to sampled_token"),
        ({"kind": "full_vocabulary", "include_sampled": True}, "objective.include_sampled does not apply"),
        ({"kind": "ema_pg", "include_sampled": True}, "does not fit ema_pg"),
        ({"kind": "lsm", "jsd_beta": 0.1}, "objective.jsd_beta is for kind=jsd, not for lsm"),
        ({"kind": "tail_bucket", "outside": "truncate"}, "objective.outside is for kind=forward or jsd"),
        ({"kind": "jsd", "clip_range": 0.1}, "objective.clip_range is for kind=sampled_token"),
        ({"support": "teacher", "support_top_p": 0.5}, "set that, or leave it out"),
        ({"kind": "tail_bucket", "extrapolation": 1.25}, "needs kind=lsm or sampled_token"),
        ({"kind": "jsd", "jsd_beta": 1.0}, "less than 1"),
        ({"kind": "kl"}, "Input should be 'lsm'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig.model_validate(settings)


def test_settings_at_their_defaults_are_accepted_for_every_kind() -> None:
    """As a run's own config.toml gives them back."""
    for kind in get_args(ObjectiveKind):
        settings = ObjectiveConfig(kind=kind).model_dump()
        assert ObjectiveConfig.model_validate(settings).kind == kind


@pytest.mark.parametrize(
    ("settings", "needs_normaliser", "min_support"),
    [
        ({"kind": "lsm"}, False, 2),
        ({"kind": "forward", "outside": "renormalise"}, False, 2),
        ({"kind": "jsd", "outside": "renormalise"}, False, 2),
        ({"kind": "forward"}, True, 1),
        ({"kind": "tail_bucket"}, True, 1),
        ({"kind": "sampled_token"}, True, 1),
        ({"kind": "full_vocabulary"}, True, 2),
    ],
)
def test_renormalising_losses_need_two_tokens_and_no_normaliser(
    settings: dict[str, Any], needs_normaliser: bool, min_support: int
) -> None:
    config = ObjectiveConfig.model_validate(settings)
    assert (config.needs_normaliser, config.min_support) == (needs_normaliser, min_support)
