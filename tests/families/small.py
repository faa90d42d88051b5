"""Makes any config of transformers small: sets the fields that hold sizes, by the names that config classes give them.

Knows nothing of single families; `overrides.py` does.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

VOCABULARY_SIZE = 272
"""Room for the 259 tokens of `tests.tiny.tiny_tokenizer`, and some rows without a token, as real models have."""
MAX_MODEL_LEN = 160
NUM_LAYERS = 4
WINDOW = 9
"""Tokens that a windowed layer sees, and tokens of a chunk: far below the lengths that tests score."""
SPREAD = 0.2
"""Deviation of the weights: wide enough that a token seen too much, or too little, moves every logprob, and not so wide
that rounding errors of fp32 grow from layer to layer."""

Fields = dict[str, Any]  # Any: values of config fields, each with a type of its own

_HIDDEN = 48
_HEADS = 4
_NAMES: dict[tuple[str, ...], object] = {
    ("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"): VOCABULARY_SIZE,
    ("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "embedding_dim", "word_embed_proj_dim"): _HIDDEN,
    ("attention_hidden_size", "lru_width", "input_embedding_size"): _HIDDEN,
    ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "dff", "dim_ff", "d_inner"): 64,
    ("dense_intermediate_size", "ffn_hidden_size", "intermediate_size_mlp", "feed_forward_size"): 64,
    ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"): 32,
    ("expert_ffn_hidden_size", "shared_intermediate_size", "shared_experts_intermediate_size"): 32,
    ("num_hidden_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_layers"): NUM_LAYERS,
    ("num_encoder_layers", "num_decoder_layers", "num_blocks"): NUM_LAYERS,
    ("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads"): _HEADS,
    ("num_encoder_attention_heads", "num_decoder_attention_heads", "attention_heads", "num_heads"): _HEADS,
    ("swa_num_attention_heads",): _HEADS,
    ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"): 2,
    ("head_dim", "d_head", "kv_channels", "dim_head", "swa_head_dim"): 12,
    ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"): MAX_MODEL_LEN,
    ("max_target_positions", "max_source_positions", "model_max_length"): MAX_MODEL_LEN,
    ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"): 4,
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"): 2,
    ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"): 1,
    ("n_group", "num_expert_group"): 2,
    ("topk_group",): 1,
    ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"): 1,
    ("moe_layer_end_index",): NUM_LAYERS - 1,
    ("kv_lora_rank",): 16,
    ("q_lora_rank",): 20,
    ("qk_nope_head_dim", "v_head_dim"): 12,
    ("qk_rope_head_dim",): 8,
    ("sliding_window", "window_size", "attention_window_size", "sliding_window_size", "attention_chunk_size"): WINDOW,
    ("use_sliding_window",): True,
    ("max_window_layers",): 2,
    ("index_topk",): 6,
    ("index_n_heads",): 64,
    ("index_head_dim",): 16,
    ("mamba_d_state", "state_size", "ssm_state_size"): 8,
    ("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim", "conv_kernel_size", "short_conv_kernel_size"): 3,
    ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"): 4,
    ("mamba_expand", "expand"): 2,
    ("mamba_d_head", "mamba_head_dim", "mamba_headdim"): 24,
    ("mamba_chunk_size", "chunk_size"): 8,
    ("mamba_dt_rank", "time_step_rank"): 8,
    ("linear_num_key_heads",): 2,
    ("linear_num_value_heads", "linear_num_heads"): 4,
    ("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"): 12,
    ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"): 6.0,
    ("attn_logit_softcapping",): 3.0,
    ("query_pre_attn_scalar",): 12,
    ("logit_scale",): 0.7,
    ("logits_scaling",): 2.0,
    ("residual_multiplier",): 0.6,
    ("attention_multiplier",): 0.4,
    ("embedding_multiplier", "lm_head_multiplier", "key_multiplier", "ssm_out_multiplier", "ssm_in_multiplier"): 0.7,
    ("attention_out_multiplier", "attention_in_multiplier"): 0.8,
    ("pad_token_id",): 0,
    ("bos_token_id",): 1,
    ("eos_token_id",): 2,
    ("image_token_id", "image_token_index", "audio_token_id", "video_token_id"): VOCABULARY_SIZE - 1,
    ("rotary_dim",): 8,
    ("n_groups", "mamba_n_groups", "mamba_ngroups"): 2,
    ("block_size",): 8,
    ("local_attention",): 2 * WINDOW,  # it counts both sides
    ("floor_scale",): 2 * WINDOW,
    ("dropout", "attention_dropout", "activation_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"): 0.0,
    ("hidden_dropout_prob", "attention_probs_dropout_prob"): 0.0,
    ("image_size", "crop_size"): 16,
    ("depth",): 2,
    ("embed_dim", "hidden_size_global", "vision_output_dim", "projector_input_dim", "projector_output_dim"): _HIDDEN,
    ("mlp_dim", "ext_pw_out_channel", "depthwise_separable_out_channel", "nemo_conv_channels"): 48,
    ("out_hidden_size", "mm_embed_dim", "output_proj_dims", "output_channels", "audio_embed_dim"): _HIDDEN,
    ("projection_dim", "projector_dim", "global_head_dim"): _HIDDEN,
    ("position_embedding_size", "mm_posemb_size", "num_position_embeddings"): 16,
    ("shape_vocab_size", "pronunciation_vocab_size", "codebook_size"): 16,
    ("shape_embed_dim", "pronunciation_embed_dim"): 12,
    ("patch_size",): 8,
}
_SPREAD_NAMES = ("initializer_range", "init_std", "initializer_factor")
_SIZES: Fields = {name: value for names, value in _NAMES.items() for name in names}
_LAYER_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")


def small(
    config_class: type[PreTrainedConfig], overrides: Mapping[str, Any] | None = None, *, spread: float = SPREAD
) -> PreTrainedConfig:
    """A small config of that class, whose weights deviate by `spread`. `overrides` beat the standard sizes; a mapping
    for a part (`text_config`) is the overrides of that part."""
    overrides = copy.deepcopy(dict(overrides or {}))  # config classes write into the mappings that they are given
    names = _field_names(config_class)
    fields: Fields = {name: value for name, value in _SIZES.items() if name in names}
    fields |= {name: spread for name in _SPREAD_NAMES if name in names}
    if "qk_rope_head_dim" in names and "head_dim" in names:
        fields["head_dim"] = _SIZES["qk_rope_head_dim"]  # what latent attention calls so is the rotated part alone
    fields |= _layer_lists(config_class, names - overrides.keys())
    for part, part_class in _parts(config_class).items():
        of_part = overrides.pop(part, {})
        fields[part] = of_part if isinstance(of_part, PreTrainedConfig) else small(part_class, of_part, spread=spread)
    return config_class(**(fields | overrides))


def _parts(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedConfig]]:
    """The configs inside a config, such as a multimodal one's text and vision, and their classes."""
    parts: dict[str, type[PreTrainedConfig]] = {}
    for name, part_class in config_class.sub_configs.items():
        part = getattr(config_class(), name) if part_class is AutoConfig else None
        if part_class is not AutoConfig:
            parts[name] = part_class
        elif part is not None:
            parts[name] = type(part)
    return parts


def _layer_lists(config_class: type[PreTrainedConfig], names: set[str]) -> Fields:
    """Every kind of layer that the class's default has, in its order, over the few layers that there are."""
    lists = [name for name in _LAYER_LISTS if name in names]
    defaults = config_class() if lists else None
    kinds = {name: list(dict.fromkeys(getattr(defaults, name, None) or ())) for name in lists}
    if "sliding_window" in _field_names(config_class) and kinds.get("layer_types") == ["full_attention"]:
        kinds["layer_types"].append("sliding_attention")  # a window that the default has no layer for
    return {name: [of[i % len(of)] for i in range(NUM_LAYERS)] for name, of in kinds.items() if of}


def _field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}
