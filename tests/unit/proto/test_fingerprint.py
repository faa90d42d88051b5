from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from preceptor.fingerprint import tokenizer_id, vocabulary_id

Parts = dict[str, Any]  # Any: a tokenizer.json is nested JSON of its library's making
Edit = Callable[[Parts], None]

TEMPLATE = "{{ messages }}"
TOKENIZER: Parts = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 4, "content": "<|end|>", "special": True}],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 3}, "merges": [["a", "b"], ["b", "a"]]},
}


def edited(edit: Edit) -> str:
    parts = copy.deepcopy(TOKENIZER)
    edit(parts)
    return json.dumps(parts)


def truncate(parts: Parts) -> None:
    parts["truncation"] = {"max_length": 512}


def pad(parts: Parts) -> None:
    parts["padding"] = {"pad_id": 4}


def bump_version(parts: Parts) -> None:
    parts["version"] = "2.0"


def drop_runtime_state(parts: Parts) -> None:
    for name in ("truncation", "padding", "version"):
        del parts[name]


def reorder_vocabulary(parts: Parts) -> None:
    parts["model"]["vocab"] = dict(reversed(parts["model"]["vocab"].items()))


def change_an_id(parts: Parts) -> None:
    parts["model"]["vocab"]["ba"] = 5


def rename_a_token(parts: Parts) -> None:
    parts["model"]["vocab"]["bb"] = parts["model"]["vocab"].pop("ba")


def add_a_token(parts: Parts) -> None:
    parts["added_tokens"].append({"id": 5, "content": "<|start|>", "special": True})


def move_an_added_token(parts: Parts) -> None:
    parts["added_tokens"][0]["id"] = 6


def swap_merges(parts: Parts) -> None:
    parts["model"]["merges"].reverse()


def drop_a_merge(parts: Parts) -> None:
    parts["model"]["merges"].pop()


def normalise(parts: Parts) -> None:
    parts["normalizer"] = {"type": "NFC"}


def split_digits(parts: Parts) -> None:
    parts["pre_tokenizer"] = {"type": "Digits"}


PLAIN = json.dumps(TOKENIZER)


@pytest.mark.parametrize("edit", [truncate, pad, bump_version, drop_runtime_state, reorder_vocabulary])
def test_what_does_not_change_an_encoding_does_not_change_the_ids(edit: Edit) -> None:
    assert edited(edit) != PLAIN
    assert tokenizer_id(edited(edit), TEMPLATE) == tokenizer_id(PLAIN, TEMPLATE)
    assert vocabulary_id(edited(edit)) == vocabulary_id(PLAIN)


@pytest.mark.parametrize("edit", [change_an_id, rename_a_token, add_a_token, move_an_added_token])
def test_another_vocabulary_changes_both_ids(edit: Edit) -> None:
    assert tokenizer_id(edited(edit), TEMPLATE) != tokenizer_id(PLAIN, TEMPLATE)
    assert vocabulary_id(edited(edit)) != vocabulary_id(PLAIN)


@pytest.mark.parametrize("edit", [swap_merges, drop_a_merge, normalise, split_digits])
def test_another_segmentation_changes_the_tokenizers_id_alone(edit: Edit) -> None:
    assert tokenizer_id(edited(edit), TEMPLATE) != tokenizer_id(PLAIN, TEMPLATE)
    assert vocabulary_id(edited(edit)) == vocabulary_id(PLAIN)


def test_another_chat_template_changes_the_tokenizers_id() -> None:
    ids = {tokenizer_id(PLAIN, template) for template in (TEMPLATE, TEMPLATE + " ", None)}
    assert len(ids) == 3


def test_no_chat_template_is_the_same_as_an_empty_one() -> None:
    assert tokenizer_id(PLAIN, None) == tokenizer_id(PLAIN, "")


def test_vocabulary_id_equals_the_documented_hash() -> None:
    text = '{"added":{"<|end|>":4},"vocabulary":{"a":0,"ab":2,"b":1,"ba":3}}'
    assert vocabulary_id(PLAIN) == hashlib.sha256(text.encode()).hexdigest()


def test_tokenizer_id_of_text_beyond_ascii_does_not_depend_on_how_json_escapes_it() -> None:
    parts = copy.deepcopy(TOKENIZER)
    parts["model"]["vocab"]["é"] = 5
    escaped, plain = json.dumps(parts), json.dumps(parts, ensure_ascii=False)
    assert escaped != plain
    assert tokenizer_id(escaped, None) == tokenizer_id(plain, None)


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '"model"', '{"vocab": {}}'])
def test_what_is_not_a_tokenizer_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a tokenizer\.json|Expecting value"):
        tokenizer_id(text, None)
    with pytest.raises(ValueError, match=r"not a tokenizer\.json|Expecting value"):
        vocabulary_id(text)
