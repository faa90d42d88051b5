"""The families that CI runs: one, or a few, of every kind."""

from __future__ import annotations

REDUCED: tuple[str, ...] = (
    "llama",
    "tied-llama",
    "llama-dynamic",
    "llama-longrope",
    "llama-yarn",
    "phi3-longrope",
    "gpt2",
    "opt",
    "bloom",
    "falcon-alibi",
    "mistral",
    "gemma2",
    "gemma3",
    "gemma4",
    "gpt_oss",
    "llama4",
    "cohere2",
    "granite",
    "mixtral",
    "qwen2_moe",
    "deepseek_v3",
    "deepseek_v32",
    "doge",
    "mamba2",
    "rwkv",
    "falcon_h1",
    "jamba",
    "qwen3_next",
    "lfm2",
    "bart",
    "qwen2_5_vl",
)
"""Names of the zoo."""
