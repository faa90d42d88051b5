"""The tiny model of all tests as a student, with logits spread wider and a shorter context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from preceptor_client.train.student.module import StudentForScoring
from preceptor_client.train.student.student import Student, prepare_student
from preceptor_client.train.student.ways import FixedWays, Training
from transformers import LlamaForCausalLM

from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

MAX_LENGTH = 256


def tiny_model(*, seed: int, tied: bool = True) -> LlamaForCausalLM:
    """Logits spread over several nats, so that distributions differ from the uniform one."""
    return tiny_llama(seed=seed, spread=0.3, tied=tied, max_length=MAX_LENGTH)


def tiny_student(*, seed: int = 0, tied: bool = True) -> Student:
    return prepare_student(tiny_model(seed=seed, tied=tied), tiny_tokenizer())


def run_as(student: Student, training: Training) -> Student:
    """The same student, trained on its batches in this way."""
    ways = FixedWays(replace(student.ways.up_to(1), training=training))
    module = StudentForScoring(student.model, head=student.head, ways=ways, pad_token_id=student.pad_token_id)
    return replace(student, module=module)


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    return save_tiny(folder, tiny_model(seed=seed))
