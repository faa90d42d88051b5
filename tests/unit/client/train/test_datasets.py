from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.errors import InvalidDataError


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `datasets` accepts in place of a hub's name: a folder whose file names tell the splits."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "capitals"
    folder.mkdir()
    for split, rows in (("train", [("Norway?", "Oslo"), ("Spain?", "Madrid")]), ("test", [("Italy?", "Rome")])):
        lines = [json.dumps({"question": question, "capital": capital}) for question, capital in rows]
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n")
    return folder


def test_a_named_dataset_is_read_by_split_and_column(dataset_folder: Path) -> None:
    train = load_examples(str(dataset_folder), prompt_field="question", answer_field="capital")
    test = load_examples(str(dataset_folder), split="test", prompt_field="question", answer_field="capital")
    assert [(example.prompt, example.answer) for example in train] == [("Norway?", "Oslo"), ("Spain?", "Madrid")]
    assert [(example.prompt, example.answer) for example in test] == [("Italy?", "Rome")]


def test_a_missing_column_names_the_setting_and_the_columns_there_are(dataset_folder: Path) -> None:
    with pytest.raises(InvalidDataError, match=r"data\.prompt_field to one of capital, question"):
        load_examples(str(dataset_folder))


def test_columns_with_the_name_of_a_field_are_read_and_others_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [
        {"id": 7, "prompt": "2+2?", "teacher_prompt": "add: 2+2?", "answer": 4, "task": "sums", "level": 0.5},
        {"id": 8, "prompt": "", "teacher_prompt": "add: 3+3?", "answer": 6, "task": "sums", "level": 0.5},
    ]
    (folder / "train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = BadExamples(policy="skip", limit=1)
    expected = Example(index=0, prompt="2+2?", teacher_prompt="add: 2+2?", answer="4", task="sums")
    assert load_examples(str(folder), bad=bad) == [expected]
    kept = replace(expected, extra={"id": 7, "level": 0.5})
    assert load_examples(str(folder), bad=BadExamples(policy="skip", limit=1), extra_fields="keep") == [kept]
    assert [one.where for one in bad.found] == [f"{folder} [train] row 1"]
    with pytest.raises(InvalidDataError, match=r"sums \[train\] row 1: 'prompt' must be a text"):
        load_examples(str(folder))


@pytest.mark.parametrize("data", [b"\xff\xfe{", b'{"prompt": ', b'{"prompt": "\\ud83d"}', b"[" * 10_000])
def test_a_dataset_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "train.json").write_bytes(data)
    with pytest.raises(InvalidDataError, match="broken"):
        load_examples(str(folder))


def test_a_name_that_is_no_dataset_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match=r"must end with \.jsonl"):
        load_examples(str(tmp_path / "nothing"))
