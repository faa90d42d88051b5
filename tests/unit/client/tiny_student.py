"""A student's folder without weights: a tokenizer of a few words, whose ids fit the scripted teacher's vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from preceptor_client.commands.student_tokenizer import PROBE_SENTENCE
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

WORDS = list(dict.fromkeys(["<unk>", "<eos>", *PROBE_SENTENCE.replace(",", " ,").replace(".", " .").split()]))


def save_student(
    folder: Path, *, generation_config: dict[str, Any] | None = None, eos_token: str | None = "<eos>", **config: Any
) -> Path:
    """Saves the tokenizer, whose end token is `<eos>` (1), and the JSON files that are given; returns the folder."""
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos_token, unk_token="<unk>").save_pretrained(folder)
    if config:
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    if generation_config:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder
