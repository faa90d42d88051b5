"""Reads of a student what has to be known to hand its tokenizer over: from a folder or the hub, without its weights."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preceptor.model_source import check_source, load_error
from preceptor.turns import joined_ids, turn_end_id

from preceptor_client.train.student.vocabulary import chosen_template, fit_vocabulary

PROBE_SENTENCE = "The capital of Norway is Oslo, which lies at the northern end of a fjord."


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentTokenizer:
    """A student's tokenizer, and what its model's settings say about it."""

    tokenizer_json: str
    chat_template: str | None
    end_token_ids: tuple[int, ...]
    """In the order in which the trainer takes them; the first is the one that the student is to learn."""
    vocabulary_size: int
    """The model's number of logits; 0 = as many as the tokenizer has tokens."""
    probe_ids: tuple[int, ...]
    """PROBE_SENTENCE."""
    notes: tuple[str, ...] = ()
    """What `preceptor train` would say of it at start."""


def load_student(
    student: str, *, gguf_file: str = "", chat_template: str = "", end_token_ids: Sequence[int] = ()
) -> StudentTokenizer:
    """The student's tokenizer, as `preceptor train` would use it: with the chat template of that name, and with those
    end tokens instead of its own. Raises OSError or ValueError where there is none, InvalidStudentError where it does
    not fit the model, ImportError without transformers."""
    from transformers import AutoTokenizer  # heavy, and only the extra `train` has it

    student = os.path.expanduser(student)
    options = {"gguf_file": gguf_file} if gguf_file else {}
    check_source(student, field="--student", gguf_field="--student-gguf-file", needs=("tokenizer",), **options)
    try:
        tokenizer = AutoTokenizer.from_pretrained(student, **options)
    except (OSError, ValueError, struct.error) as error:  # the last is of a GGUF file that is cut short
        raise load_error(student, error, field="--student") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"the tokenizer of {student} has no tokenizer.json: only fast tokenizers can be compared")
    config = {} if gguf_file else _model_config(student)
    generation_end = None if gguf_file else _generation_end(student)
    tokenizer.chat_template, template_notes = chosen_template(tokenizer, name=chat_template)
    named = (generation_end, config.get("eos_token_id"), tokenizer.eos_token_id, turn_end_id(tokenizer))
    vocabulary_size = int(config.get("vocab_size") or 0)
    vocabulary = fit_vocabulary(
        tokenizer,
        num_rows=vocabulary_size or 1 + max(tokenizer.get_vocab().values()),
        named_end_ids=tuple(end_token_ids) or joined_ids(*named),
    )
    return StudentTokenizer(
        tokenizer_json=backend.to_str(),
        chat_template=tokenizer.chat_template,
        end_token_ids=vocabulary.end_token_ids,
        vocabulary_size=vocabulary_size,
        probe_ids=tuple(tokenizer(PROBE_SENTENCE, add_special_tokens=False)["input_ids"]),
        notes=(*template_notes, *vocabulary.notes),
    )


def _generation_end(student: str) -> int | list[int] | None:
    from transformers import GenerationConfig

    try:
        end: int | list[int] | None = GenerationConfig.from_pretrained(student).eos_token_id
    except OSError:
        # There is no generation_config.json.
        return None
    return end


def _model_config(student: str) -> dict[str, Any]:  # Any: a config.json holds what its model's author put in
    from transformers import PretrainedConfig

    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(student)[0]
    except OSError:
        # A folder of a tokenizer alone.
        return {}
    # Models that also see or hear keep the part about text apart.
    return {**config.get("text_config", {}), **config}
