"""The tiny model of all tests as a student, with logits spread wider and a shorter context."""

from __future__ import annotations

from pathlib import Path

from preceptor_client.train.student.student import Student, prepare_student
from transformers import LlamaForCausalLM

from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

MAX_LENGTH = 256


def tiny_model(*, seed: int, tied: bool = True) -> LlamaForCausalLM:
    """Logits spread over several nats, so that distributions differ from the uniform one."""
    return tiny_llama(seed=seed, spread=0.3, tied=tied, max_length=MAX_LENGTH)


def tiny_student(*, seed: int = 0, tied: bool = True) -> Student:
    return prepare_student(tiny_model(seed=seed, tied=tied), tiny_tokenizer())


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    return save_tiny(folder, tiny_model(seed=seed))
