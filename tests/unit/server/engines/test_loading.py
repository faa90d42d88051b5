from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.loading import load_model
from preceptor_server.errors import StartupError
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, tiny_llama


def test_a_checkpoint_that_lacks_a_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, tiny_llama())
    assert load_model(HfConfig(model=str(folder))).vocabulary_size > 0
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    message = r"^engine\.model: '.*' lacks 1 of the weights of LlamaForCausalLM: model\.norm\.weight: "
    with pytest.raises(StartupError, match=message):
        load_model(HfConfig(model=str(folder)))
