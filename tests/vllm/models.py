"""Small random models with heads of every kind, in shapes that vLLM's CPU kernels take (heads of 32 dimensions)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny import save_tiny

VOCABULARY_SIZE = 300
_SHAPE: dict[str, Any] = {  # Any: keyword arguments of configs, each with types of its own
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-untied": lambda: LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **_SHAPE)),
    "qwen3-tied": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=32, tie_word_embeddings=True, **_SHAPE)),
    "gemma2-softcapped": lambda: Gemma2ForCausalLM(
        Gemma2Config(head_dim=32, query_pre_attn_scalar=32, final_logit_softcapping=3.0, sliding_window=32, **_SHAPE)
    ),
    "granite-divided": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=3.0, **_SHAPE)),
    "cohere-multiplied": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.3, **_SHAPE)),
}


def save_model(folder: Path, name: str = "llama-untied", *, seed: int = 0) -> Path:
    """The model of that name beside the tiny tokenizer; returns the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name]()
    return save_tiny(folder, model.eval())
