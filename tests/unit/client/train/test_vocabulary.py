"""The tokenizer of a student beside its model: each way in which the two do not fit is told, or made to fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor.fingerprint import tokenizer_id
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.generation import Sampling, generate
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import Student, load_student, prepare_student
from preceptor_client.train.student.vocabulary import begins_twice
from preceptor_client.types import ChatMessage
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE, VOCABULARY_SIZE, save_tiny, tiny_llama, tiny_tokenizer

BEYOND = VOCABULARY_SIZE
"""The first id without a row."""
TEMPLATES = {"default": CHAT_TEMPLATE, "rag": "{{ messages[0]['content'] }}<|im_end|>", "tool_use": "{{ tools }}"}
QUESTION = (ChatMessage(role="user", content="hi"),)


def _with_pad_beyond() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == BEYOND
    return tokenizer


def _prepared(tokenizer: PreTrainedTokenizerFast) -> Student:
    return prepare_student(tiny_llama(), tokenizer)


def test_padding_without_a_row_is_replaced_by_an_end_token() -> None:
    """A `[PAD]` that was added without resizing the model has the number of rows as its id."""
    student = _prepared(_with_pad_beyond())
    assert student.pad_token_id == student.end_token_ids[0] == 2
    assert student.notes == (
        f"the student's padding token '[PAD]' ({BEYOND}) has no row in its model ({VOCABULARY_SIZE} rows): "
        "'<|im_end|>' pads instead, which changes nothing",
    )


def test_what_pads_changes_no_number() -> None:
    prompts = [[5, 6, 7, 8, 9], [5, 9]]
    theirs, ours = _prepared(tiny_tokenizer()), _prepared(_with_pad_beyond())
    responses = generate(theirs, prompts, max_new_tokens=9, sampling=None)
    assert generate(ours, prompts, max_new_tokens=9, sampling=None) == responses
    sequences = [
        ScoredSequence(prompt_ids=prompt, response_ids=response, positions_N=np.arange(len(response)))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    assert torch.equal(scored_hidden_states(ours, sequences), scored_hidden_states(theirs, sequences))


@pytest.mark.parametrize("pads", [True, False], ids=["pad = eos", "no pad token"])
def test_an_end_token_that_also_pads_cuts_no_response(pads: bool) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token if pads else None
    student, other = _prepared(tokenizer), _prepared(tiny_tokenizer())
    assert student.pad_token_id == 2 != other.pad_token_id
    assert not student.notes
    written = []
    for one in (student, other):
        with torch.no_grad():
            one.model.get_output_embeddings().weight[2] *= 6  # ends often, and at unlike lengths
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sampling = Sampling(temperature=1.0, top_p=1.0)
            written.append(generate(one, [[5, 6], [7, 8, 9]] * 8, max_new_tokens=12, sampling=sampling))
    assert written[0] == written[1]
    assert len({len(response) for response in written[0]}) > 2
    assert any(response[-1] == 2 for response in written[0])
    assert all(2 not in response[:-1] for response in written[0])


def test_an_ordinary_token_without_a_row_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Oslo"])
    with pytest.raises(InvalidStudentError, match=rf"'Oslo' \({BEYOND}\): .*resize_token_embeddings\(len\(tokenizer"):
        _prepared(tokenizer)


def test_a_special_token_without_a_row_that_the_template_writes_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", "<|turn|>")
    with pytest.raises(InvalidStudentError, match=rf"'<\|turn\|>' \({BEYOND}\)"):
        _prepared(tokenizer)


def test_a_beginning_without_a_row_that_the_tokenizer_adds_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEYOND)])
    with pytest.raises(InvalidStudentError, match=rf"'<s>' \({BEYOND}\)"):
        _prepared(tokenizer)


def test_a_special_token_without_a_row_that_only_its_own_text_makes_is_told() -> None:
    """Gemma 3 1B: the tokenizer of its family has a token for images, which the model of texts has no row for."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    student = _prepared(tokenizer)
    assert student.pad_token_id == 0
    assert student.notes == (
        f"special tokens without a row in the student's model: '<image>' ({BEYOND}): a prompt that holds the text of "
        "one is refused",
    )


def test_rows_without_a_token_are_no_fault() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    student = prepare_student(tiny_llama(vocabulary_size=VOCABULARY_SIZE + 9), tokenizer)
    assert (student.vocabulary_size, student.notes) == (VOCABULARY_SIZE + 9, ())


def test_end_tokens_without_a_row_are_left_out_and_told() -> None:
    model = tiny_llama()
    model.generation_config = GenerationConfig(eos_token_id=[300, 2, -1])
    student = prepare_student(model, tiny_tokenizer())
    assert student.end_token_ids == (2,)
    assert student.notes == ("end tokens without a row in the student's model are never written: 300, -1",)


def test_a_student_whose_only_end_token_has_no_row_is_refused() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=300)
    model.config.eos_token_id = None
    tokenizer.eos_token = tokenizer.chat_template = None
    with pytest.raises(InvalidStudentError, match=r"no end token \(300 has no row in the model\): .*end_token_ids"):
        prepare_student(model, tokenizer)


def _save_with_templates(folder: Path, templates: dict[str, str]) -> Path:
    save_tiny(folder, tiny_llama())
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(folder)
    return folder


def test_of_several_chat_templates_the_default_is_used_and_all_are_saved(tmp_path: Path) -> None:
    folder = _save_with_templates(tmp_path / "a", TEMPLATES)
    student = load_student(StudentConfig(model=str(folder)))
    plain = _prepared(tiny_tokenizer())
    assert student.encode_prompt(QUESTION) == plain.encode_prompt(QUESTION)
    assert student.tokenizer.chat_template == CHAT_TEMPLATE
    assert student.tokenizer_id == tokenizer_id(student.tokenizer.backend_tokenizer.to_str(), CHAT_TEMPLATE)
    assert student.notes == (
        "the student's tokenizer has several chat templates (default, rag, tool_use): 'default' is used; "
        "student.chat_template names another",
    )
    student.save(tmp_path / "b")
    assert student.tokenizer.chat_template == CHAT_TEMPLATE
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "b")
    assert saved.chat_template == TEMPLATES
    assert load_student(StudentConfig(model=str(tmp_path / "b"))).tokenizer_id == student.tokenizer_id


def test_of_several_chat_templates_the_settings_name_another(tmp_path: Path) -> None:
    folder = _save_with_templates(tmp_path, TEMPLATES)
    student = load_student(StudentConfig(model=str(folder), chat_template="rag"))
    assert student.tokenizer.decode(student.encode_prompt(QUESTION)) == "hi<|im_end|>"
    assert student.tokenizer.chat_template == TEMPLATES["rag"]
    assert not student.notes


@pytest.mark.parametrize(
    ("templates", "name", "message"),
    [
        ({"rag": "a", "tool_use": "b"}, "", r"set student\.chat_template to one of them: rag, tool_use"),
        (TEMPLATES, "raq", r"student\.chat_template='raq' is none of the chat templates .*: default, rag, tool_use"),
        (CHAT_TEMPLATE, "rag", r"student\.chat_template='rag' .* has one, without a name: leave the setting out"),
        (None, "rag", r"student\.chat_template='rag' .* has none: leave the setting out"),
    ],
)
def test_a_chat_template_that_is_not_there_is_refused(
    templates: str | dict[str, str] | None, name: str, message: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = templates
    with pytest.raises(InvalidStudentError, match=message):
        prepare_student(tiny_llama(), tokenizer, chat_template=name)


def test_a_template_that_writes_the_beginning_has_it_once_and_a_text_that_does_twice() -> None:
    """The tokenizer adds one to texts, and none to what the template rendered."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    student = _prepared(tokenizer)
    assert student.encode_prompt(QUESTION)[:1] == student.encode_prompt("hi")[:1] == [1]
    assert not begins_twice(tokenizer, student.encode_prompt(QUESTION))
    assert not begins_twice(tokenizer, student.encode_prompt("hi"))
    assert begins_twice(tokenizer, student.encode_prompt("<|im_start|>hi"))
