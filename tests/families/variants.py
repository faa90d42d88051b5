"""Models that differ from their family's first one by a setting that its checkpoints have: every kind of rope, ALiBi
where it is a choice, windows that only a mask knows of."""

from __future__ import annotations

from tests.families.overrides import OVERRIDES
from tests.families.ropes import ROPE_THRESHOLD, ROPES
from tests.families.small import NUM_LAYERS, Fields

VARIANTS: dict[str, tuple[str, Fields]] = {
    **{f"llama-{kind}": ("llama", {"rope_parameters": rope}) for kind, rope in ROPES.items()},
    "llama-dynamic": ("llama", {"rope_parameters": ROPES["dynamic"], "max_position_embeddings": ROPE_THRESHOLD}),
    "phi3-longrope": (
        "phi3",
        {
            "rope_parameters": ROPES["longrope"],
            "original_max_position_embeddings": ROPE_THRESHOLD,
            "sliding_window": None,
        },
    ),
    "falcon-alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "num_kv_heads": 4}),
    "falcon-grouped": ("falcon", {"new_decoder_architecture": True}),
    "qwen2_moe-window": ("qwen2_moe", {"use_sliding_window": True, "max_window_layers": 2}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "deepseek_v2-lite": ("deepseek_v2", {"q_lora_rank": None, "num_key_value_heads": 4, "n_routed_experts": 8}),
    "olmo-clipped": ("olmo", {"clip_qkv": 1.5}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False}),
    "granitemoehybrid-rope": ("granitemoehybrid", {**OVERRIDES["granitemoehybrid"], "position_embedding_type": "rope"}),
    "minimax-full": ("minimax", {"layer_types": ["full_attention"] * NUM_LAYERS}),
    "tied-llama": ("llama", {"tie_word_embeddings": True}),
}
"""By name: the model_type, and what is set beside the standard sizes."""

EAGER_IS_WRONG = {"falcon-alibi": "adds ALiBi's bias twice: to the mask, and to the scores"}
"""Variants whose eager attention, in transformers, does not compute what the default one does, and why."""

SPREADS: dict[str, float] = {
    "hrm_text": 0.1,
    "hyperclovax": 0.15,
    "minimax": 0.15,
    "nemotron": 0.15,
    "olmo_hybrid": 0.15,
    "qwen3_5": 0.12,
    "qwen3_5_moe": 0.12,
    "qwen3_5_moe_text": 0.12,
    "qwen3_5_text": 0.12,
    "qwen3_next": 0.12,
    "zamba": 0.12,
    "zamba2": 0.12,
}
"""By model_type: a smaller deviation of the weights, where fp32 itself would be off by more than tests allow."""

SEEDS = {"deepseek_v2-lite": 1}
"""Variants that route a token of the matrix, with the weights of seed 0, by a margin below fp32's own rounding."""
