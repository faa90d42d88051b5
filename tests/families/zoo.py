"""Tiny random models of every family that transformers' causal-LM mapping knows. What makes a family peculiar is on and
small: windows and rope thresholds are shorter than the sequences that tests score.

`FAMILIES` holds what is built, `LISTED` what is not, with the reason; together they are the mapping, and some more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.families.features import features_of, thresholds_of
from tests.families.listed import LISTED
from tests.families.multimodal import MULTIMODAL, WITH_VISION
from tests.families.overrides import OVERRIDES
from tests.families.small import SPREAD, Fields, small
from tests.families.spread import spread_weights
from tests.families.variants import EAGER_IS_WRONG, SEEDS, SPREADS, VARIANTS
from tests.tiny import tiny_tokenizer

__all__ = ["FAMILIES", "LISTED", "Family", "build", "load", "mapped", "random_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to make one tiny model."""

    name: str
    model_type: str
    model_class: str
    """The class that its checkpoints name, which wrote them."""
    overrides: Fields = field(default_factory=dict)
    """Fields of its config beside the standard sizes."""
    spread: float = SPREAD
    """Deviation of its weights; less where depth in time multiplies rounding errors."""
    first_seed: int = 0
    """Of its weights."""
    attention: str = "eager"
    """transformers' implementation that is right, where its implementations differ."""

    def config(self, changes: Mapping[str, object] | None = None) -> PreTrainedConfig:
        """A new config; `changes` are fields of its text part to set otherwise."""
        config = small(CONFIG_MAPPING[self.model_type], self.overrides, spread=self.spread)
        text = config.get_text_config(decoder=True)
        for name, value in (changes or {}).items():
            setattr(text, name, value)
        return config

    @property
    def thresholds(self) -> tuple[int, ...]:
        """Lengths at which something changes: windows, chunks, rope thresholds; each once, in order."""
        return thresholds_of(self.config())

    @property
    def features(self) -> tuple[str, ...]:
        """What is peculiar about it and on, in words."""
        return features_of(self.config())


def random_model(family: Family, *, seed: int = 0, changes: Mapping[str, object] | None = None) -> PreTrainedModel:
    """Its model with random weights, in float32, by transformers' plainest attention."""
    with torch.random.fork_rng():
        torch.manual_seed(family.first_seed + seed)
        model_class = getattr(transformers, family.model_class)
        config = family.config(changes)
        model: PreTrainedModel = model_class._from_config(
            config, attn_implementation=family.attention, dtype=torch.float32
        )
        spread_weights(model, spread=family.spread)
        model.eval()
        return model


def build(family: Family, folder: Path, *, seed: int = 0) -> Path:
    """Saves the family's random model, and a tokenizer of fewer tokens than it has rows, into `folder`; returns it."""
    random_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(family: Family, folder: Path) -> PreTrainedModel:
    """The model as transformers loads it by the class that wrote it: fresh, in float32, by the plainest attention."""
    model_class = getattr(transformers, family.model_class)
    model: PreTrainedModel = model_class.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=family.attention
    )
    model.eval()
    return model


def mapped(model_type: str) -> Family:
    """A family of the causal-LM mapping. A wrapper's checkpoints name the class that reads images, if there is one."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    return Family(
        name=model_type,
        model_type=model_type,
        model_class=MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(model_type, causal),
        overrides=OVERRIDES.get(model_type, {}) | MULTIMODAL.get(model_type, {}),
        spread=SPREADS.get(model_type, SPREAD),
    )


def _with_vision(model_type: str) -> Family:
    """A family that transformers' causal-LM mapping does not have, though its checkpoints hold a text model."""
    return Family(
        name=model_type,
        model_type=model_type,
        model_class=MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type],
        overrides=WITH_VISION[model_type],
        spread=SPREADS.get(model_type, SPREAD),
    )


def _variant(name: str) -> Family:
    model_type, overrides = VARIANTS[name]
    return Family(
        name=name,
        model_type=model_type,
        model_class=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type],
        overrides=overrides,
        spread=SPREADS.get(model_type, SPREAD),
        first_seed=SEEDS.get(name, 0),
        attention="sdpa" if name in EAGER_IS_WRONG else "eager",
    )


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(mapped(model_type) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if model_type not in LISTED),
        *(_with_vision(model_type) for model_type in WITH_VISION),
        *(_variant(name) for name in VARIANTS),
    )
}
"""By name: a model_type of the mapping, one of a checkpoint with vision, or that of a variant."""
