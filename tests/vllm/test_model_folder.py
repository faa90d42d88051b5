"""The folder that vLLM reads instead of the GGUF holds the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.local.smollm2 import GGUF_FILE, gguf_folder, saved_folder

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_folder(tmp_path_factory.mktemp("models"))


def test_the_folder_holds_the_weights_of_the_gguf_to_the_bit(folder: Path) -> None:
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert saved.dtype == torch.float32
    original = AutoModelForCausalLM.from_pretrained(gguf_folder(), gguf_file=GGUF_FILE, dtype=torch.float32)
    ids = torch.arange(100, 132)[None]
    with torch.inference_mode():
        assert torch.equal(saved(ids).logits, original(ids).logits)


def test_the_folder_holds_the_tokenizer_and_its_chat_template(folder: Path) -> None:
    saved = AutoTokenizer.from_pretrained(folder)
    original = AutoTokenizer.from_pretrained(gguf_folder(), gguf_file=GGUF_FILE)
    turns = [{"role": "user", "content": "What is the capital of Norway?"}]
    texts = [one.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for one in (saved, original)]
    assert texts[0] == texts[1]
    assert saved(str(texts[0])).input_ids == original(str(texts[0])).input_ids
    assert saved.eos_token_id == original.eos_token_id


def test_a_folder_is_made_once_and_nothing_is_left_beside_it(folder: Path) -> None:
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert saved_folder(folder.parent) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert list(folder.parent.iterdir()) == [folder]
