"""How a text is shown: cuts, statuses and their reasons, against what scoring would answer for the same text."""

from __future__ import annotations

from typing import Any

import pytest
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.edges.http.answers_about import AlignAnswer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.unit.server.alignment.tokenizers_for_tests import byte_level
from tests.unit.server.edges.http.asking import Asked, Body, asking, problem, tiny_teacher
from tests.unit.server.hosting import hosted_teacher


def merging_teacher(**options: Any) -> Any:  # Any: as hosted_teacher takes them
    tokenizer = TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level())))
    return hosted_teacher(vocabulary_size=tokenizer.vocabulary_size, tokenizer=tokenizer, **options)


async def align(asked: Asked, body: Body) -> Body:
    answer = await asked.client.post("/v1/align", json=body)
    assert answer.status_code == 200, answer.text
    AlignAnswer.model_validate_json(answer.content)
    shown: Body = answer.json()
    return shown


async def test_the_teachers_own_text_is_scored_token_by_token() -> None:
    async with asking() as asked:
        shown = await align(asked, {"response": {"text": "a\xe9<|im_end|>"}})
    assert [token["text"] for token in shown["tokens"]] == ["a", "<0xC3>", "<0xA9>", "<|im_end|>"]
    assert [token["bytes"] for token in shown["tokens"]] == ["61", "c3", "a9", ""]
    assert {token["status"] for token in shown["tokens"]} == {"ok"}
    assert {token["reason"] for token in shown["tokens"]} == {None}
    assert [token["teacher_tokens"] for token in shown["tokens"]] == [[0], [1], [2], [3]]
    assert [token["id"] for token in shown["teacher_tokens"]] == [token["id"] for token in shown["tokens"]]
    assert all(token["is_scored"] for token in shown["teacher_tokens"])
    assert shown["report"]["relation"] == "identical"
    assert (shown["segmentation"], shown["report"]["is_one_to_one"]) == ("as_is", True)


async def test_what_the_teacher_would_cut_otherwise_is_masked_and_the_reason_says_how() -> None:
    teacher = merging_teacher()
    tokenizer = Tokenizer.from_str(byte_level())
    whole, other = tokenizer.encode("the"), tokenizer.encode("z").ids[0]
    assert len(whole.ids) == 1, "the corpus has many"
    letters = [tokenizer.token_to_id(letter) for letter in "the"]
    async with asking(teacher) as asked:
        shown = await align(asked, {"response": {"ids": [*letters, other]}, "segmentation": "mask"})
        assert [token["status"] for token in shown["tokens"]] == ["misaligned"] * 3 + ["ok"]
        assert shown["tokens"][0]["reason"] == "the teacher would write 'the' there"
        assert [token["is_scored"] for token in shown["teacher_tokens"]] == [False, False, False, True]

        canonical = await align(asked, {"response": {"ids": [*letters, other]}, "segmentation": "canonical"})
        assert [token["id"] for token in canonical["teacher_tokens"]] == [whole.ids[0], other]
        assert [token["teacher_tokens"] for token in canonical["tokens"]] == [[0], [0], [0], [1]]
        assert [token["status"] for token in canonical["tokens"]] == ["ok", "misaligned", "misaligned", "ok"]


@pytest.mark.parametrize("segmentation", ["as_is", "mask", "canonical", "paper"])
async def test_the_statuses_are_those_that_scoring_answers(segmentation: str) -> None:
    tokenizer = Tokenizer.from_str(byte_level())
    ids = [tokenizer.token_to_id(letter) for letter in "theother"] + [tokenizer.token_to_id("<|end|>")]
    body: Body = {"segmentation": segmentation}
    if segmentation == "paper":
        body["paper_token_ids"] = [ids[1]]
    async with asking(merging_teacher()) as asked:
        shown = await align(asked, {"response": {"ids": ids}, **body})
        answer = (await asked.topk({"prompt": {"teacher_ids": [5]}, "responses": [{"ids": ids}], **body})).json()
    [response] = answer["responses"]
    assert [token["status"] for token in shown["tokens"]] == response["status"]
    read = response["teacher_ids"] or response["ids"]
    assert [token["id"] for token in shown["teacher_tokens"]] == read
    for position, row in zip(response["positions"], response["teacher_rows"] or response["positions"], strict=True):
        assert shown["tokens"][position]["teacher_tokens"][0] == row
        assert shown["teacher_tokens"][row]["is_scored"]
    for token in shown["tokens"]:
        assert (token["reason"] is None) == (token["status"] == "ok")


async def test_the_reason_of_a_paper_token_names_the_rule() -> None:
    async with asking() as asked:
        body = {"response": {"text": "aa"}, "segmentation": "paper", "paper_token_ids": list(range(3, 259))}
        shown = await align(asked, body)
    assert [token["status"] for token in shown["tokens"]] == ["special", "ok"]
    assert shown["tokens"][0]["reason"] == "it is the first of its kind, and paper_token_ids names it"


async def test_what_lies_beyond_the_context_behind_the_prompt_is_told() -> None:
    async with asking(tiny_teacher(max_model_len=8)) as asked:
        body = {"response": {"text": "abcdef"}, "prompt": {"text": "xyzw"}, "segmentation": "canonical"}
        shown = await align(asked, body)
    assert [token["status"] for token in shown["tokens"]] == ["ok"] * 4 + ["beyond_context"] * 2
    assert shown["tokens"][4]["reason"] == "it lies beyond the teacher's context"
    assert shown["tokens"][4]["teacher_tokens"] == []


async def test_a_teacher_that_aligns_nothing_shows_its_own_ids() -> None:
    async with asking(hosted_teacher()) as asked:
        shown = await align(asked, {"response": {"ids": [7, 8]}})
        assert [token["id"] for token in shown["teacher_tokens"]] == [7, 8]
        assert shown["report"] is None
        answer = await asked.client.post("/v1/align", json={"response": {"text": "a"}})
        assert problem(answer) == (422, "NOT_IMPLEMENTED", "response.text")


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        ({}, "INVALID_FIELD", "response"),
        ({"response": {}}, "INVALID_FIELD", "response"),
        ({"response": {"ids": [999]}}, "TOKEN_OUT_OF_RANGE", "response.ids"),
        ({"response": {"text": "a", "score_mask": [True]}}, "INVALID_FIELD", "response.score_mask"),
        ({"response": {"text": "a"}, "prompt": {"teacher_ids": [999]}}, "TOKEN_OUT_OF_RANGE", "prompt.teacher_ids"),
        ({"response": {"text": "a" * 100}}, "BEYOND_CONTEXT", "response.text"),
        ({"response": {"text": "a"}, "segmentation": "paper"}, "INVALID_FIELD", "paper_token_ids"),
        ({"response": {"text": "a"}, "top_k": 1}, "INVALID_FIELD", "top_k"),
    ],
)
async def test_mistakes_are_told_by_field(body: Body, reason: str, field: str) -> None:
    async with asking() as asked:
        assert problem(await asked.client.post("/v1/align", json=body)) == (400, reason, field)


async def test_an_unknown_tokenizer_is_404() -> None:
    async with asking() as asked:
        answer = await asked.client.post("/v1/align", json={"response": {"ids": [1]}, "tokenizer": "nobody"})
        assert problem(answer) == (404, "UNKNOWN_TOKENIZER", "tokenizer")
