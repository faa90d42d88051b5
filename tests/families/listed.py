"""Families that are in transformers' causal-LM mapping and not in the zoo, each with the reason."""

from __future__ import annotations

NOT_CAUSAL: dict[str, str] = {
    "cpmant": "transformers runs it as it was trained: all of an input sees all of it",
    "prophetnet": "a later token changes what transformers answers for earlier ones, through its streams of n-grams",
    "reformer": "hashes tokens into buckets, drawn at random and sorted over the whole input",
    "xlnet": "a permutation model: without a mask for each position, every token sees every other",
}
"""What a forward answers for a token depends on later ones: there is no teacher's view of each position to be had."""

LISTED: dict[str, str] = {
    **NOT_CAUSAL,
    "gemma3n": "its vision tower needs timm, which is not among the dependencies; gemma3n_text is built",
    "gemma4_assistant": "a draft head: it reads hidden states and keys of another model",
    "gemma4_unified_assistant": "a draft head: it reads hidden states and keys of another model",
    "musicgen": "writes audio: rows of several codebooks",
    "musicgen_melody": "writes audio: rows of several codebooks",
}
"""By model_type."""
