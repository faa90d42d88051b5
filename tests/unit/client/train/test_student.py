from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.generation import generate
from preceptor_client.train.student.student import Student, load_student, prepare_student
from preceptor_client.types import ChatMessage
from transformers import LlamaForCausalLM

from tests.tiny import tiny_tokenizer
from tests.unit.client.train.tiny import save_tiny_model, tiny_model, tiny_student


def test_saved_student_loads_equal(tmp_path: Path, student: Student) -> None:
    student.save(tmp_path)
    loaded = load_student(StudentConfig(model=str(tmp_path), device="cpu"))
    assert loaded.tokenizer_id == student.tokenizer_id
    assert loaded.end_token_ids == student.end_token_ids == (2,)
    for (name, ours), theirs in zip(student.model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    loaded = load_student(StudentConfig(model=str(save_tiny_model(tmp_path))))
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight


def test_generation_defaults_do_not_bend_rollouts_and_are_saved(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "a")
    defaults = {"repetition_penalty": 1.5, "do_sample": True, "top_k": 3, "eos_token_id": [2, 10]}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(defaults))
    student = load_student(StudentConfig(model=str(tmp_path / "a")))
    assert student.end_token_ids == (2, 10)
    prompts = [[1, 2, 3]]
    plain = tiny_student(seed=0)
    limit = 20
    ours = generate(student, prompts, max_new_tokens=limit, sampling=None)[0]
    assert ours == generate(plain, prompts, max_new_tokens=limit, sampling=None)[0][: len(ours)]
    student.save(tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert saved["repetition_penalty"] == 1.5


def test_end_tokens_of_the_settings_replace_those_of_the_model_and_are_saved_with_it(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "a")
    student = load_student(StudentConfig(model=str(tmp_path / "a"), end_token_ids=(10, 2, 10)))
    assert student.end_token_ids == (10, 2)
    student.save(tmp_path / "b")
    assert load_student(StudentConfig(model=str(tmp_path / "b"))).end_token_ids == (10, 2)
    with pytest.raises(InvalidStudentError, match=r"student\.end_token_ids holds 259, .* are in \[0, 259\)"):
        load_student(StudentConfig(model=str(tmp_path / "a"), end_token_ids=(2, 259)))


def test_conversation_is_rendered_with_the_template_and_an_open_turn(student: Student) -> None:
    ids = student.encode_prompt((ChatMessage(role="user", content="hi"),))
    assert student.tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(1) == 2
    assert student.decode([*student.encode_prompt("hello"), 2]) == "hello"


@pytest.mark.parametrize("name", ["/absent/model", "./absent", "../absent", "~/absent", "runs/a/b", "absent/"])
def test_absent_folder_is_refused_without_a_look_at_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("preceptor_client.train.student.model_files.AutoTokenizer", None)
    with pytest.raises(InvalidStudentError, match="no folder"):
        load_student(StudentConfig(model=name))


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidStudentError, match=r"^student\.model: folder '.*' holds no config\.json, so it is no model"
    ):
        load_student(StudentConfig(model=str(tmp_path)))


def test_hub_id_that_cannot_be_had_is_told_as_no_folder_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        InvalidStudentError,
        match=r"^student\.model: there is no folder 'a b', and .* while HF_HUB_OFFLINE is set: Repo id",
    ):
        load_student(StudentConfig(model="a b"))


def test_checkpoint_that_is_damaged_is_told_as_one_and_not_as_the_settings(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "step-000004")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InvalidStudentError, match=r"^checkpoint: .*model\.safetensors has \d+ bytes, and its header"):
        load_student(StudentConfig(model="unused"), folder=folder)


def test_absent_gguf_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidStudentError, match=r"no file model\.gguf"):
        load_student(StudentConfig(model=str(tmp_path), gguf_file="model.gguf"))


def test_model_that_changes_its_logits_after_the_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaForCausalLM.forward

    def bent(self: LlamaForCausalLM, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        assert isinstance(output.logits, torch.Tensor)
        output.logits = output.logits.sin()
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", bent)
    with pytest.raises(InvalidStudentError, match="a scale and a soft cap are known"):
        prepare_student(tiny_model(seed=0), tiny_tokenizer())


def test_student_without_end_token_is_refused() -> None:
    model, tokenizer = tiny_model(seed=0), tiny_tokenizer()
    model.config.eos_token_id = None
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    tokenizer.chat_template = None
    with pytest.raises(InvalidStudentError, match="no end token"):
        prepare_student(model, tokenizer)
