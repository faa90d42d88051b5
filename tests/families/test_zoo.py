"""The zoo itself, by transformers alone: it is complete, and what it says of a family is on and matters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families.features import LENGTHS, STRENGTHS, number_of
from tests.families.listed import LISTED, NOT_CAUSAL
from tests.families.parameters import each_family
from tests.families.small import MAX_MODEL_LEN, VOCABULARY_SIZE
from tests.families.zoo import FAMILIES, Family, build, load, mapped, random_model

NUM_TOKENS = 60
NUM_EARLY = 40
NUM_SHORT = 20
"""Below every threshold of a rope."""
NOISE_NATS = 5e-5
"""Two orders of summation, in fp32."""
EFFECT_NATS = 1e-3
MAX_PARAMETERS = 1_000_000

FIXED = {("phimoe", "num_experts_per_tok"), ("aya_vision", "logit_scale")}
"""Settings that a family's config has, and transformers' model does not read."""


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 259, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logprobs(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """[1, T, V]"""
    result: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    return result


def test_every_family_of_transformers_mapping_is_built_or_listed_with_a_reason() -> None:
    built = {family.model_type for family in FAMILIES.values()} & MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert built | LISTED.keys() == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert not built & LISTED.keys()


def test_names_are_those_of_the_families() -> None:
    assert all(family.name == name for name, family in FAMILIES.items())


@pytest.mark.parametrize("model_type", NOT_CAUSAL)
def test_a_family_listed_as_not_causal_is_not(model_type: str) -> None:
    family, ids = mapped(model_type), tokens()
    changed = torch.cat([ids[:, :NUM_EARLY], tokens(2)[:, NUM_EARLY:]], dim=1)
    early, again = (logprobs(random_model(family), those)[:, :NUM_EARLY] for those in (ids, changed))
    assert (early - again).abs().max() > EFFECT_NATS


@pytest.mark.parametrize("family", each_family())
def test_what_comes_later_changes_nothing_before_it(family: Family) -> None:
    ids = tokens()
    changed = torch.cat([ids[:, :NUM_EARLY], tokens(2)[:, NUM_EARLY:]], dim=1)
    early, again = (logprobs(random_model(family), those)[:, :NUM_EARLY] for those in (ids, changed))
    assert torch.isfinite(early).all()
    assert (early - again).abs().max() < NOISE_NATS


@pytest.mark.parametrize("family", each_family())
def test_only_ropes_that_go_by_the_length_answer_otherwise_for_a_beginning_alone(family: Family) -> None:
    whole, ids = logprobs(random_model(family), tokens()), tokens()[:, :NUM_SHORT]
    difference = (whole[:, :NUM_SHORT] - logprobs(random_model(family), ids)).abs().max()
    is_by_length = family.name in {"llama-dynamic", "llama-longrope", "phi3-longrope"}
    assert difference > EFFECT_NATS if is_by_length else difference < NOISE_NATS


@pytest.mark.parametrize("family", each_family())
def test_a_model_is_small_and_its_logits_differ_by_nats(family: Family) -> None:
    model = random_model(family)
    assert sum(parameter.numel() for parameter in model.parameters()) < MAX_PARAMETERS
    result = logprobs(model, tokens())
    assert result.shape == (1, NUM_TOKENS, VOCABULARY_SIZE)
    assert 0.5 < result.std(-1).mean() < 6
    assert all(1 < threshold < NUM_EARLY < NUM_TOKENS < MAX_MODEL_LEN for threshold in family.thresholds)


@pytest.mark.parametrize("family", each_family())
def test_a_model_is_saved_and_loaded_whole(family: Family, tmp_path: Path) -> None:
    loaded = load(family, build(family, tmp_path))
    assert torch.equal(logprobs(loaded, tokens()), logprobs(random_model(family), tokens()))


@pytest.mark.parametrize("family", each_family())
def test_what_is_on_matters(family: Family) -> None:
    text, before = family.config().get_text_config(decoder=True), logprobs(random_model(family), tokens())
    for name in (*LENGTHS, *STRENGTHS):
        value = number_of(text, name)
        if value is None or value >= MAX_MODEL_LEN or (family.model_type, name) in FIXED:
            continue
        other = value + 1 if "experts" in name or "moe" in name else 2 * value
        after = logprobs(random_model(family, changes={name: other}), tokens())
        assert (after - before).abs().max() > EFFECT_NATS, f"{name}={value} and {name}={other} give the same"
