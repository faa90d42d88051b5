"""Whatever an answer depends on changes the key of a group; nothing else does."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from preceptor.wire import LogprobDtype, SegmentationPolicy
from preceptor_client import Chat, ChatMessage, StudentIds, TeacherIds, Text, ToolCall
from preceptor_client.request import GroupRequest, check_group
from preceptor_client.score_key import TeacherIdentity, score_key

IDENTITY = TeacherIdentity(
    teacher="tutor", revision="r1", tokenizer_id="tok", vocabulary_id="voc", dtype="float32", server_version="1"
)
BASE: dict[str, Any] = {  # Any: whatever check_group takes
    "prompt": TeacherIds([1, 2]),
    "request_id": "a",
    "teacher": "",
    "adapter": "",
    "tokenizer_id": "",
    "responses": [[3, 4], [5]],
    "score_masks": None,
    "candidate_ids": None,
    "top_k": 4,
    "temperature": 1.0,
    "logprob_dtype": LogprobDtype.F16,
    "batch_invariant": False,
    "segmentation": None,
    "paper_token_ids": (),
}


def group(**changes: Any) -> GroupRequest:  # Any: as above
    options = {**BASE, **changes}
    return check_group(options.pop("prompt"), **options)


def chat(**changes: Any) -> Chat:  # Any: of the message
    return Chat((ChatMessage("user", **{"content": "hello", **changes}),))


CHANGES: list[dict[str, Any]] = [  # Any: as above
    {},
    {"prompt": TeacherIds([1, 2, 3]), "responses": [[4], [5]]},
    {"prompt": StudentIds([1, 2])},
    {"prompt": TeacherIds([1])},
    {"prompt": TeacherIds([258])},
    {"prompt": Text("1 2")},
    {"prompt": Text("1 2", omit_special_tokens=True)},
    {"prompt": chat()},
    {"prompt": chat(content="hello ")},
    {"prompt": chat(name="he", content="llo")},
    {"prompt": chat(reasoning_content="")},
    {"prompt": chat(tool_call_id="1")},
    {"prompt": chat(tool_calls=(ToolCall("f", {"a": 1, "b": 2}),))},
    {"prompt": chat(tool_calls=(ToolCall("f", {"b": 2, "a": 1}),))},
    {"prompt": chat(tool_calls=(ToolCall("f", {"a": 1, "b": 2}, id="x"),))},
    {"prompt": Chat((ChatMessage("user", "hello"),), tools=({"name": "f"},))},
    {"prompt": Chat((ChatMessage("user", "hello"),), template_arguments={"enable_thinking": False})},
    {"prompt": Chat((ChatMessage("user", "hello"), ChatMessage("assistant", "")))},
    {"responses": [[3, 4, 5]]},
    {"responses": [[3], [4, 5]]},
    {"responses": [[5], [3, 4]]},
    {"score_masks": [[1, 0], [1]]},
    {"score_masks": [[0, 1], [1]]},
    {"candidate_ids": [np.array([[1], [2]]), None]},
    {"candidate_ids": [np.array([[2], [1]]), None]},
    {"candidate_ids": [np.array([[1, 2], [1, 2]]), None]},
    {"candidate_ids": [None, np.array([[1]])]},
    {"top_k": 5},
    {"temperature": 1.0 + 2**-52},
    {"logprob_dtype": LogprobDtype.F32},
    {"batch_invariant": True},
    {"adapter": "lora"},
    {"tokenizer_id": "student"},
    *({"segmentation": policy} for policy in SegmentationPolicy if policy is not SegmentationPolicy.PAPER),
    {"segmentation": SegmentationPolicy.PAPER, "paper_token_ids": (1, 2)},
    {"segmentation": SegmentationPolicy.PAPER, "paper_token_ids": (2, 1)},
]


def test_no_two_different_groups_have_one_key() -> None:
    keys = [score_key(group(**change), IDENTITY) for change in CHANGES]
    same = [(CHANGES[i], CHANGES[j]) for (i, a), (j, b) in itertools.combinations(enumerate(keys), 2) if a == b]
    assert same == []


@pytest.mark.parametrize("field", ["teacher", "revision", "tokenizer_id", "vocabulary_id", "dtype", "server_version"])
def test_another_teacher_has_another_key(field: str) -> None:
    other = replace(IDENTITY, **{field: "other"})
    assert score_key(group(), other) != score_key(group(), IDENTITY)
    if field == "server_version":  # decides only what the request leaves open
        asked = group(segmentation=SegmentationPolicy.AS_IS)
        assert score_key(asked, other) == score_key(asked, IDENTITY)


@pytest.mark.parametrize(
    "change",
    [
        {"request_id": "b"},
        {"prompt": TeacherIds(np.array([1, 2], np.uint16))},
        {"responses": [np.array([3, 4], np.int32), (5,)]},
        {"score_masks": [[True, True], None]},
        {"teacher": "tutor"},
        {"tokenizer_id": "tok"},
    ],
)
def test_other_ways_to_say_the_same_have_the_same_key(change: dict[str, Any]) -> None:
    assert score_key(group(**change), IDENTITY) == score_key(group(), IDENTITY)


def test_the_key_is_the_one_that_files_hold_already() -> None:
    # A change of the fields needs another version, or old files would answer what was not asked.
    assert score_key(group(), IDENTITY).hex() == "baca39c5e2cca0ef0f55a4eca1e563026d9856e3ef4f84056df2763461494c6f"
