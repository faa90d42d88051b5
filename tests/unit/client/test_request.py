"""Mistakes of a caller are refused before anything is sent, and name the field as the server would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from preceptor.wire import SegmentationPolicy
from preceptor_client import Chat, StudentIds, TeacherClient, TeacherIds, Text
from preceptor_client.errors import InvalidRequestError, MessageTooLargeError

# Nothing listens there: a call that were sent would fail otherwise than the tests say.
NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": StudentIds([])}, "prompt.student_ids"),
        ({"prompt": TeacherIds([])}, "prompt.teacher_ids"),
        ({"prompt": TeacherIds([3, -1])}, "prompt.teacher_ids"),
        ({"prompt": TeacherIds([2**32])}, "prompt.teacher_ids"),
        ({"prompt": TeacherIds(np.array([[1, 2]]))}, "prompt.teacher_ids"),
        ({"prompt": Text("")}, "prompt.text.text"),
        ({"prompt": Chat(())}, "prompt.chat.messages"),
        ({"responses": []}, "responses"),
        ({"responses": [[1], []]}, "responses[1].ids"),
        ({"responses": [[1], [2, -5]]}, "responses[1].ids"),
        ({"responses": [np.array([1.0, 2.0])]}, "responses[0].ids"),
        ({"top_k": 0}, "top_k"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"score_masks": [[1], [1]]}, "responses"),
        ({"score_masks": [[1]]}, "responses[0].score_mask"),
        ({"score_masks": [[1, 2]]}, "responses[0].score_mask"),
        ({"responses": [[1, 2], [3]], "score_masks": [[1, 0], [0]]}, "responses[1].score_mask"),
        ({"candidate_ids": []}, "responses"),
        ({"candidate_ids": [np.array([[1], [2]]), None]}, "responses"),
        ({"candidate_ids": [np.array([1, 2])]}, "responses[0].candidates.ids"),
        ({"candidate_ids": [np.array([[1, 2]])]}, "responses[0].candidates.ids"),
        ({"candidate_ids": [np.zeros((2, 0), np.int64)]}, "responses[0].candidates.ids"),
        ({"candidate_ids": [np.array([[1.0], [2.0]])]}, "responses[0].candidates.ids"),
        ({"candidate_ids": [np.array([[1], [-2]])]}, "responses[0].candidates.ids"),
        ({"candidate_ids": [np.array([[1], [2**32]])]}, "responses[0].candidates.ids"),
        ({"segmentation": SegmentationPolicy.PAPER}, "paper_token_ids"),
        ({"segmentation": SegmentationPolicy.MASK, "paper_token_ids": [3]}, "paper_token_ids"),
        ({"paper_token_ids": [3]}, "paper_token_ids"),
        ({"segmentation": SegmentationPolicy.PAPER, "paper_token_ids": [-1]}, "paper_token_ids"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
async def test_mistake_names_its_field(arguments: dict[str, Any], field: str) -> None:
    call: dict[str, Any] = {"prompt": TeacherIds([1]), "responses": [[1, 2]], "top_k": 2} | arguments
    async with TeacherClient(NOBODY, timeout_seconds=1) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.score(call.pop("prompt"), call.pop("responses"), **call)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"tokenizer_json": ""}, "tokenizer_json"),
        ({"tokenizer_json": "{"}, "tokenizer_json"),
        ({"tokenizer_json": "[]"}, "tokenizer_json"),
        ({"tokenizer_json": '{"version": "1.0"}'}, "tokenizer_json"),
        ({"tokenizer_json": "[" * 100_000}, "tokenizer_json"),
        ({"end_token_ids": [-1]}, "end_token_ids"),
        ({"teacher_end_token_ids": [2**32]}, "teacher_end_token_ids"),
        ({"special_pairs": {"<eos>": ""}}, "special_pairs"),
        ({"vocabulary_size": -1}, "vocabulary_size"),
    ],
)
async def test_tokenizer_that_is_none_names_its_field(arguments: dict[str, Any], field: str) -> None:
    call: dict[str, Any] = {"tokenizer_json": '{"model": {}}'} | arguments
    async with TeacherClient(NOBODY, timeout_seconds=1) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.register_tokenizer(call.pop("tokenizer_json"), **call)
    assert caught.value.field == field
    assert str(caught.value).startswith(field)


async def test_request_beyond_the_message_limit_is_not_sent() -> None:
    async with TeacherClient(NOBODY, timeout_seconds=1, max_message_bytes=1000) as client:
        with pytest.raises(
            MessageTooLargeError, match=r"the request has \d{4} bytes, more than max_message_bytes=1000"
        ):
            await client.score(TeacherIds([1] * 600), [[1]], top_k=2)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://teacher:50051", "has a scheme"),
        ("teacher", "has no port"),
        ("teacher:", "has no port"),
        (":50051", "has no port"),
        ("teacher:70000", "has no port"),
        ("teacher:http", "has no port"),
        ("::1:50051", "brackets"),
    ],
)
def test_address_other_than_host_and_port_is_refused(address: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TeacherClient(address)


@pytest.mark.parametrize("address", ["teacher:50051", "10.0.0.1:1", "[::1]:65535"])
def test_host_and_port_are_an_address(address: str) -> None:
    TeacherClient(address)


@pytest.mark.parametrize("name", ["timeout_seconds", "attempt_timeout_seconds", "max_message_bytes"])
def test_limit_of_zero_is_refused(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be above 0"):
        TeacherClient(NOBODY, **limits)


def test_caller_that_metadata_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        TeacherClient(NOBODY, caller="équipe\n")
