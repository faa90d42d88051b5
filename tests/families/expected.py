"""What becomes of each family of the reduced matrix, which CI runs: one, or a few, of every kind."""

from __future__ import annotations

from tests.families.outcome import Kind

EXPECTED: dict[str, Kind] = {
    "llama": "exact packed",
    "tied-llama": "exact packed",
    "llama-dynamic": "exact packed",
    "llama-longrope": "exact packed",
    "llama-yarn": "exact packed",
    "phi3-longrope": "exact packed",
    "gpt2": "exact packed",
    "opt": "exact packed",
    "bloom": "exact sequential",
    "falcon-alibi": "exact sequential",
    "mistral": "exact packed",
    "gemma2": "exact packed",
    "gemma3": "exact packed",
    "gemma4": "exact packed",
    "gpt_oss": "exact packed",
    "llama4": "exact sequential",
    "cohere2": "exact packed",
    "granite": "exact packed",
    "mixtral": "exact packed",
    "qwen2_moe": "exact packed",
    "deepseek_v3": "exact packed",
    "deepseek_v32": "exact sequential",
    "doge": "exact sequential",
    "mamba2": "exact sequential",
    "rwkv": "exact sequential",
    "falcon_h1": "exact sequential",
    "jamba": "exact sequential",
    "qwen3_next": "exact sequential",
    "lfm2": "exact packed",
    "bart": "exact sequential",
    "qwen2_5_vl": "exact packed",
}
"""By the family's name. `make test-families` runs all others too, and writes docs/families.md."""
