"""What is read of a student's folder: tokenizer, end tokens, number of logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preceptor_client.commands.student_tokenizer import load_student
from preceptor_client.train.errors import InvalidStudentError
from transformers import PreTrainedTokenizerFast

from tests.unit.client.tiny_student import WORDS, save_student


@pytest.mark.parametrize(
    ("generation_end", "config_end", "tokenizer_end", "expected"),
    [
        ([9, 8], 7, "<eos>", (9, 8, 7, 1)),
        (9, None, "<eos>", (9, 1)),
        (None, [7, 1], "<eos>", (7, 1)),
        (None, None, "<eos>", (1,)),
    ],
)
def test_end_tokens_are_generations_then_the_models_then_the_tokenizers(
    generation_end: Any, config_end: Any, tokenizer_end: str | None, expected: tuple[int, ...], tmp_path: Path
) -> None:
    generation = None if generation_end is None else {"eos_token_id": generation_end}
    config = {} if config_end is None else {"eos_token_id": config_end}
    folder = save_student(tmp_path, generation_config=generation, eos_token=tokenizer_end, **config)
    assert load_student(str(folder)).end_token_ids == expected


def test_a_student_that_nothing_ends_is_refused_as_the_trainer_does(tmp_path: Path) -> None:
    with pytest.raises(InvalidStudentError, match="no end token"):
        load_student(str(save_student(tmp_path, eos_token=None)))
    assert load_student(str(tmp_path), end_token_ids=(5,)).end_token_ids == (5,)


def test_number_of_logits_is_the_models(tmp_path: Path) -> None:
    assert load_student(str(save_student(tmp_path / "alone"))).vocabulary_size == 0
    assert load_student(str(save_student(tmp_path / "model", vocab_size=90))).vocabulary_size == 90
    seeing = save_student(tmp_path / "seeing", text_config={"vocab_size": 80, "eos_token_id": 5})
    assert load_student(str(seeing)).vocabulary_size == 80
    assert load_student(str(seeing)).end_token_ids == (5, 1)


def test_probe_is_the_sentence_in_the_students_ids(tmp_path: Path) -> None:
    student = load_student(str(save_student(tmp_path)))
    assert [WORDS[token] for token in student.probe_ids[:6]] == ["The", "capital", "of", "Norway", "is", "Oslo"]


@pytest.mark.parametrize(
    ("student", "gguf_file", "message"),
    [
        ("{folder}", "", "--student: folder '{folder}' holds no tokenizer, such as tokenizer.json"),
        ("{folder}/none", "", "--student: no folder '{folder}/none'"),
        ("{folder}", "m.gguf", "--student-gguf-file: no file m.gguf in '{folder}'"),
    ],
)
def test_folder_that_lacks_something_is_told(student: str, gguf_file: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as told:  # noqa: PT011  the whole message is compared
        load_student(student.format(folder=tmp_path), gguf_file=gguf_file)
    assert str(told.value) == message.format(folder=tmp_path)


def test_an_ordinary_token_without_a_row_is_refused_as_the_trainer_does(tmp_path: Path) -> None:
    with pytest.raises(InvalidStudentError, match=rf"'{WORDS[-1]}' \({len(WORDS) - 1}\): .*resize_token_embeddings"):
        load_student(str(save_student(tmp_path, vocab_size=len(WORDS) - 1)))


def test_padding_without_a_row_and_several_templates_are_told(tmp_path: Path) -> None:
    folder = save_student(tmp_path, vocab_size=len(WORDS))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "rag": "rag"}
    tokenizer.save_pretrained(folder)
    student = load_student(str(folder))
    assert student.chat_template == "{{ messages[0]['content'] }}"
    assert [note.split(":")[0] for note in student.notes] == [
        "the student's tokenizer has several chat templates (default, rag)",
        f"the student's padding token '[PAD]' ({len(WORDS)}) has no row in its model ({len(WORDS)} rows)",
    ]
    assert load_student(str(folder), chat_template="rag").chat_template == "rag"
    with pytest.raises(InvalidStudentError, match=r"student\.chat_template='raq' is none"):
        load_student(str(folder), chat_template="raq")
