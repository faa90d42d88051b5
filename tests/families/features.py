"""What a config turns on, read from its fields: names of features, and the lengths at which they begin to matter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedConfig

from tests.families.small import MAX_MODEL_LEN

LENGTHS: dict[str, str] = {
    "sliding_window": "window",
    "sliding_window_size": "window",
    "attention_window_size": "window",
    "window_size": "window",
    "attention_chunk_size": "attention in chunks of",
    "index_topk": "indexer's top",
    "indexer_budget": "indexer's top",
    "floor_scale": "attention temperature beyond",
}
"""Fields that hold a length at which the logits change, and what it is the length of."""

SCANS = ("block_size", "mamba_chunk_size", "chunk_size")
"""Fields that hold how many tokens a recurrent layer computes at once: the logits are the same whatever it is."""

STRENGTHS: dict[str, str] = {
    "final_logit_softcapping": "soft-capped logits",
    "logits_soft_cap": "soft-capped logits",
    "output_logit_soft_cap": "soft-capped logits",
    "attn_logit_softcapping": "soft-capped attention",
    "logit_scale": "scaled logits",
    "logits_scaling": "scaled logits",
    "lm_head_multiplier": "scaled logits",
    "embedding_multiplier": "scaled embeddings",
    "residual_multiplier": "scaled residuals",
    "attention_multiplier": "scaled attention",
    "key_multiplier": "scaled keys",
    "num_experts_per_tok": "experts per token",
    "num_experts_per_token": "experts per token",
    "moe_topk": "experts per token",
    "moe_k": "experts per token",
}
"""Fields that hold a number which changes the logits, and what it does."""


def features_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """In words, for a table."""
    text = config.get_text_config(decoder=True)
    lengths = {name: number_of(text, name) or MAX_MODEL_LEN for name in LENGTHS}
    found = [f"{LENGTHS[name]} {length}" for name, length in lengths.items() if length < MAX_MODEL_LEN]
    found += [f"{words} ({value:g})" for name, words in STRENGTHS.items() if (value := number_of(text, name) or 1) != 1]
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or ()))
    found += [" + ".join(kinds)] if kinds and kinds != ["full_attention"] else []
    found += [f"{rope['rope_type']} rope" for rope in _ropes(text) if rope["rope_type"] != "default"]
    found += ["latent attention"] if number_of(text, "kv_lora_rank") is not None else []
    found += ["ALiBi"] if getattr(getattr(text, "attn_config", text), "alibi", False) else []
    found += ["ties embedding and head"] if getattr(config, "tie_word_embeddings", False) else []
    found += ["text part of a multimodal checkpoint"] if hasattr(config, "text_config") else []
    return tuple(dict.fromkeys(found))


_BUILT: dict[str, str] = {
    "sink": "attention sinks",
    ".experts.": "experts",
    "A_log": "recurrent states",
    "time_decay": "recurrent states",
    "conv": "convolution over time",
    ".wpe.": "learned positions",
    "position_embeddings.": "learned positions",
    "embed_positions.": "learned positions",
}
"""Parts of the names of weights, and what they are of."""


def features_of_weights(names: Iterable[str]) -> tuple[str, ...]:
    """What the names of a model's weights tell and its config does not."""
    of_text = [name for name in names if not re.search(r"vision|audio|image|visual|vq|encoder_attn|patcher", name)]
    found = [words for part, words in _BUILT.items() if any(part in name for name in of_text)]
    return tuple(dict.fromkeys(found))


def thresholds_of(config: PreTrainedConfig) -> tuple[int, ...]:
    """Each once, in order."""
    text = config.get_text_config(decoder=True)
    lengths = [number_of(text, name) for name in (*LENGTHS, *SCANS)]
    lengths += [_rope_threshold(text, rope) for rope in _ropes(text)]
    lengths += [(getattr(text, "compress_rates", None) or {}).get("heavily_compressed_attention")]
    return tuple(sorted({int(length) for length in lengths if length is not None and 1 < length < MAX_MODEL_LEN}))


def number_of(config: PreTrainedConfig, name: str) -> float | None:
    """The number that a field holds, if it is above 0; None where another field decides it."""
    if isinstance(getattr(type(config), name, None), property):
        return None  # computed from other fields
    value = getattr(config, name, None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _rope_threshold(config: PreTrainedConfig, rope: dict[str, Any]) -> int | None:
    """`dynamic` goes by the model's own context."""
    if rope["rope_type"] == "dynamic":
        return int(config.max_position_embeddings)
    return rope.get("original_max_position_embeddings")


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:  # Any: numbers and names
    """Its rope's parameters; of one that has a rope per kind of layer, of each."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return [parameters]
    return [rope for rope in parameters.values() if isinstance(rope, dict) and "rope_type" in rope]
