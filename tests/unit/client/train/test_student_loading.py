from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.student import load_student
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny, tiny_llama


def test_a_checkpoint_that_lacks_a_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, tiny_llama())
    assert load_student(StudentConfig(model=str(folder))).vocabulary_size > 0
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    message = r"^student\.model: '.*' lacks 1 of the weights of LlamaForCausalLM: model\.norm\.weight: "
    with pytest.raises(InvalidStudentError, match=message):
        load_student(StudentConfig(model=str(folder)))
