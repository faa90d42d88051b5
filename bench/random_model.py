"""A random teacher of a real one's shape, to measure with: python -m bench.random_model FOLDER --shape 7b

Its answers mean nothing, and what they cost is what a trained model's would. The tokenizer beside it has as many tokens
as the model, and knows single bytes only.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a model of Qwen2.5's family; 28 layers."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    is_tied: bool


SHAPES = {
    "1.5b": Shape(
        hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2, is_tied=True
    ),
    "7b": Shape(
        hidden_size=3584, intermediate_size=18_944, num_attention_heads=28, num_key_value_heads=4, is_tied=False
    ),
}
NUM_LAYERS = 28
VOCABULARY_SIZE = 151_936
END, END_ID = "<|endoftext|>", 0
MAX_LENGTH = 8192


def write_model(folder: Path, shape: Shape, *, device: str) -> None:
    """In bf16."""
    config = Qwen2Config(
        num_hidden_layers=NUM_LAYERS,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=None,
        eos_token_id=END_ID,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def write_tokenizer(folder: Path, *, size: int = VOCABULARY_SIZE) -> None:
    """One token per byte; the others of its `size` have names, and no text."""
    tokens = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"<|{index}|>" for index in range(len(tokens), size)]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END).save_pretrained(folder)


def main() -> int:
    """Writes the folder."""
    parser = argparse.ArgumentParser(prog="python -m bench.random_model", description="A random teacher.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1.5b")
    arguments = parser.parse_args()
    write_model(arguments.folder, SHAPES[arguments.shape], device="cuda" if torch.cuda.is_available() else "cpu")
    write_tokenizer(arguments.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
