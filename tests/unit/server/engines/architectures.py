"""Causal language models of many families, tiny and random, with whatever makes their attention or head peculiar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY_SIZE = 300
MAX_MODEL_LEN = 256
SLIDING_WINDOW = 8
ROPE_THRESHOLD = 48
"""Tokens beyond which the rope of `phi3-longrope` and of `llama-dynamic` changes."""
_SPREAD = 0.3
"""Deviation of the weights: wide enough that a token seen too much, or too little, moves every logprob."""
_SHAPE: dict[str, Any] = {  # Any: keyword arguments of configs, each with types of its own
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_MODEL_LEN,
    "initializer_range": _SPREAD,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2}


def _deepseek_v3() -> PreTrainedModel:
    """Keys are longer than values, and a saved buffer has a say in which experts a token goes to."""
    config = DeepseekV3Config(
        moe_intermediate_size=32,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        **_SHAPE,
    )
    model = DeepseekV3ForCausalLM(config)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_()
    return model


def _gemma2() -> PreTrainedModel:
    config = Gemma2Config(
        head_dim=16,
        sliding_window=SLIDING_WINDOW,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=16,
        **_GROUPED,
    )
    return Gemma2ForCausalLM(config)


def _gemma3() -> PreTrainedModel:
    config = Gemma3TextConfig(
        head_dim=16,
        sliding_window=SLIDING_WINDOW,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        **_GROUPED,
    )
    return Gemma3ForCausalLM(config)


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY_SIZE,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=MAX_MODEL_LEN,
        initializer_range=_SPREAD,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


def _gpt_oss() -> PreTrainedModel:
    config = GptOssConfig(head_dim=16, sliding_window=SLIDING_WINDOW, num_local_experts=4, **_GROUPED)
    return GptOssForCausalLM(config)


def _opt() -> PreTrainedModel:
    config = OPTConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_MODEL_LEN,
        word_embed_proj_dim=64,
        init_std=_SPREAD,
    )
    return OPTForCausalLM(config)


def _phi3_longrope() -> PreTrainedModel:
    half = 64 // 4 // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * half,
        "long_factor": [3.0] * half,
        "original_max_position_embeddings": ROPE_THRESHOLD,
    }
    return Phi3ForCausalLM(
        Phi3Config(rope_parameters=rope, original_max_position_embeddings=ROPE_THRESHOLD, **_GROUPED)
    )


def _llama_dynamic() -> PreTrainedModel:
    """Of whose positions the first quarter is its own; the rope stretches them."""
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": MAX_MODEL_LEN / ROPE_THRESHOLD}
    return LlamaForCausalLM(
        LlamaConfig(rope_parameters=rope, **{**_GROUPED, "max_position_embeddings": ROPE_THRESHOLD})
    )


def _qwen2_moe() -> PreTrainedModel:
    """Its layers know nothing of their window: the mask alone does."""
    config = Qwen2MoeConfig(
        use_sliding_window=True,
        sliding_window=SLIDING_WINDOW,
        max_window_layers=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        **_GROUPED,
    )
    return Qwen2MoeForCausalLM(config)


ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **_GROUPED)),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(sliding_window=SLIDING_WINDOW, **_GROUPED)),
    "deepseek-v3-saved-buffers": _deepseek_v3,
    "gemma2-softcapped": _gemma2,
    "gemma3-sliding": _gemma3,
    "mixtral-experts": lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=4, **_GROUPED)),
    "cohere-scaled": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.3, **_GROUPED)),
    "granite-scaled": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=3.0, **_GROUPED)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_GROUPED)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPE)),
    "gpt2": _gpt2,
    "gpt-oss-sinks": _gpt_oss,
    "opt": _opt,
    "phi3-longrope": _phi3_longrope,
    "llama-dynamic": _llama_dynamic,
    "qwen2-moe-window-in-mask": _qwen2_moe,
}


def random_model(name: str, *, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]()
        model.eval()
        return model
