"""HTTP's numbers against gRPC's, of the same server: a small Llama whose tokenizer has merges, and students of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import msgpack
import numpy as np
import pytest
from google.protobuf.message import Message
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceStub
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy
from preceptor_client import BlockingTeacherClient, StudentIds, Text
from preceptor_server.edges.http.answers import TopkAnswer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.integration.http.serving import SECONDS, Body, BothWays, running_both
from tests.tiny import CHAT_TEMPLATE, tiny_llama
from tests.unit.server.alignment.tokenizers_for_tests import byte_level, gemma_like, permuted

END = "<|end|>"
TEXT = "the other brothers bother café 你好 😀 and 345 of them sleep"
K = 12
ONE_TO_ONE = ["as_is", "mask", "canonical", "paper"]


def saved(tokenizer_json: str, folder: Path, **options: Any) -> Path:  # Any: of the tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json), **options)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothWays]:
    folder = tmp_path_factory.mktemp("merging")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level()), eos_token=END)
    tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny_llama(spread=0.6, vocabulary_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = {
        "permuted": saved(permuted(byte_level()), tmp_path_factory.mktemp("permuted"), eos_token=END),
        "stranger": saved(gemma_like(), tmp_path_factory.mktemp("stranger")),
    }
    folders = ", ".join(f'"{name}": "{path}"' for name, path in named.items())
    arguments = ["--engine.model", str(folder), "--http.tokenizers", f"{{{folders}}}", "--http.record", "10"]
    arguments += ["--http.share", "1"]  # gRPC and HTTP take turns here, and nobody shall wait for anybody
    with running_both(tmp_path_factory.mktemp("server"), *arguments) as running:
        yield running


@pytest.fixture
def client(both: BothWays) -> Iterator[httpx.Client]:
    with both.client() as opened:
        yield opened


@pytest.fixture
def stub(both: BothWays) -> Iterator[TeacherServiceStub]:
    with grpc.insecure_channel(both.server.address) as channel:
        yield TeacherServiceStub(channel)


def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer.from_str({"": byte_level(), "permuted": permuted(byte_level()), "stranger": gemma_like()}[name])


def policies() -> list[tuple[str, str]]:
    return [(name, policy) for name in ("", "permuted") for policy in ONE_TO_ONE] + [("stranger", "canonical")]


def body_of(name: str, policy: str, dtype: str) -> Body:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    letters = [tokenizer.encode(letter, add_special_tokens=False).ids[-1] for letter in "theother"]  # cut otherwise
    body: Body = {
        "prompt": {"text": "Sleep: "},
        "responses": [{"ids": ids}, {"ids": letters, "score_mask": [True] * 6 + [False, True]}],
        "top_k": K,
        "tokenizer": name,
        "segmentation": policy,
        "logprob_dtype": dtype,
        "batch_invariant": True,
        "temperature": 0.7,
    }
    if policy == "paper":
        body["paper_token_ids"] = [ids[0], ids[3]]
    if policy != "canonical":
        for response in body["responses"]:
            response["candidate_ids"] = [[token, ids[0], 5] for token in response["ids"]]
    return body


def column(ids: list[int]) -> pb.TokenIds:
    return pb.TokenIds(data=np.array(ids, "<u4").tobytes(), dtype=pb.TOKEN_DTYPE_U32)


def request_of(body: Body, tokenizer_id: str) -> pb.ScoreRequest:
    """By hand, so that nothing of the server's own translation proves itself."""
    request = pb.ScoreRequest(
        tokenizer_id=tokenizer_id,
        prompt=pb.Prompt(text=pb.TextPrompt(text=body["prompt"]["text"])),
        top_k=body["top_k"],
        temperature=body["temperature"],
        segmentation=pb.SegmentationPolicy.ValueType(SegmentationPolicy[body["segmentation"].upper()]),
        logprob_dtype=pb.LogprobDtype.ValueType(LogprobDtype[body["logprob_dtype"].upper()]),
        paper_token_ids=body.get("paper_token_ids", []),
        batch_invariant=True,
    )
    for one in body["responses"]:
        response = request.responses.add(ids=column(one["ids"]), score_mask=bytes(one.get("score_mask", [])))
        if "candidate_ids" in one:
            flat = [token for row in one["candidate_ids"] for token in row]
            response.candidates.CopyFrom(pb.CandidateIds(ids=column(flat), num_per_position=3))
    return request


def as_fields(message: Message) -> Body:
    """A message by its names, absent messages as None."""
    fields: Body = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            fields[field.name] = list(value) if field.is_repeated else value
        elif field.is_repeated:
            fields[field.name] = [as_fields(one) for one in value]
        else:
            fields[field.name] = as_fields(value) if message.HasField(field.name) else None
    return fields


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize(("name", "policy"), policies())
def test_packed_columns_are_grpcs_bit_for_bit(
    client: httpx.Client, stub: TeacherServiceStub, name: str, policy: str, dtype: str
) -> None:
    body = body_of(name, policy, dtype)
    answer = client.post("/v1/topk", json=body, headers={"accept": "application/msgpack"})
    assert answer.status_code == 200, answer.text
    packed = msgpack.unpackb(answer.content)
    expected = as_fields(stub.Score(request_of(body, packed["tokenizer_id"]), timeout=SECONDS))
    statuses = {PositionStatus(status) for one in packed["responses"] for status in one["status"]}
    assert PositionStatus.OK in statuses
    assert (PositionStatus.MISALIGNED in statuses) == (policy in ("mask", "canonical"))
    packed.pop("timings"), expected.pop("timings")
    assert packed == expected


@pytest.mark.parametrize(("name", "policy"), policies())
def test_json_is_what_a_client_over_grpc_gets(both: BothWays, client: httpx.Client, name: str, policy: str) -> None:
    body = body_of(name, policy, "f32")
    answer = client.post("/v1/topk", json=body)
    TopkAnswer.model_validate_json(answer.content)
    shown = answer.json()
    with BlockingTeacherClient(both.server.address) as teacher:
        scores = teacher.score(
            Text("Sleep: "),
            [one["ids"] for one in body["responses"]],
            top_k=K,
            temperature=0.7,
            tokenizer_id=shown["tokenizer_id"],
            score_masks=[one.get("score_mask") for one in body["responses"]],
            candidate_ids=[
                np.array(one["candidate_ids"]) if "candidate_ids" in one else None for one in body["responses"]
            ],
            logprob_dtype=LogprobDtype.F32,
            batch_invariant=True,
            segmentation=SegmentationPolicy[policy.upper()],
            paper_token_ids=body.get("paper_token_ids", []),
        )
    assert (shown["teacher"], shown["revision"]) == (scores.teacher, scores.revision)
    assert shown["prompt_ids"] == scores.prompt_ids.tolist()
    for one, expected in zip(shown["responses"], scores.responses, strict=True):
        assert one["status"] == [PositionStatus(status).name.lower() for status in expected.status_T]
        assert one["positions"] == expected.positions_N.tolist()
        assert one["support_ids"] == expected.support_ids_NK.tolist()
        for column_name, values in (
            ("support_logprobs", expected.support_logprobs_NK),
            ("sampled_logprobs", expected.sampled_logprobs_N),
            ("log_tail_mass", expected.log_tail_mass_N),
            ("entropies", expected.entropies_N),
            ("candidate_logprobs", expected.candidate_logprobs_NC),
        ):
            assert (one[column_name] is None) == (values is None), column_name
            if values is not None:
                read = np.array(one[column_name], np.float64).reshape(values.shape)
                read = np.where(np.isnan(read), -np.inf, read).astype(np.float32)
                np.testing.assert_array_equal(read, values, err_msg=column_name)
        read_ids = None if expected.teacher_ids_M is None else expected.teacher_ids_M.tolist()
        assert one["teacher_ids"] == read_ids
        for position, rank, row in zip(one["positions"], one["sampled_ranks"], one["support_ids"], strict=True):
            sampled = one["ids"][position]
            assert (rank is None) or row[rank - 1] == sampled
            assert rank is not None or sampled not in row or policy != "as_is"


@pytest.mark.parametrize("name", ["", "permuted", "stranger"])
def test_text_is_cut_by_the_tokenizer_that_is_named(client: httpx.Client, name: str) -> None:
    body = {"prompt": {"text": "Sleep: "}, "responses": [{"text": TEXT}], "tokenizer": name}
    shown = client.post("/v1/topk", json=body).json()
    ids = shown["responses"][0]["ids"]
    assert ids == tokenizer_of(name).encode(TEXT, add_special_tokens=False).ids
    assert all(shown["texts"][str(token)] for token in ids)
    whole = [token for token in ids if "<0x" not in shown["texts"][str(token)]]
    assert (
        tokenizer_of(name).decode(whole[:3]).strip() == "".join(shown["texts"][str(one)] for one in whole[:3]).strip()
    )


@pytest.mark.parametrize("name", ["", "permuted", "stranger"])
def test_what_may_follow_is_the_first_row_of_any_response(client: httpx.Client, name: str) -> None:
    common = {"prompt": {"text": "Sleep: the o"}, "top_k": K, "tokenizer": name, "batch_invariant": True}
    following = client.post("/v1/topk", json=common).json()
    scored = client.post("/v1/topk", json=common | {"responses": [{"text": "ther"}]}).json()
    assert following["prompt_ids"] == scored["prompt_ids"]
    [row], first = following["responses"][0]["support_ids"], scored["responses"][0]["support_ids"][0]
    if name == "stranger":  # its masses are sums over the teacher's likeliest and those on the response's own way
        assert len(set(row) & set(first)) >= K - 1
    else:
        assert row == first
        one, other = following["responses"][0], scored["responses"][0]
        np.testing.assert_allclose(one["support_logprobs"][0], other["support_logprobs"][0], atol=2e-6)


def test_what_a_client_scored_over_grpc_can_be_looked_at(both: BothWays, client: httpx.Client) -> None:
    last = client.get("/v1/requests").json()["last"]
    with BlockingTeacherClient(both.server.address, caller="trainer 7") as teacher:
        scores = teacher.score(StudentIds([5, 6, 7]), [[8, 9]], top_k=3, logprob_dtype=LogprobDtype.F32, request_id="r")
    listed = client.get("/v1/requests", params={"after": last, "wait_seconds": 10}).json()
    [record] = listed["records"]
    assert (record["transport"], record["caller"], record["request_id"]) == ("grpc", "trainer 7", "r")
    assert (record["outcome"], record["num_prompt_tokens"], record["num_positions"]) == ("ok", 3, 2)
    shown = client.get(f"/v1/requests/{record['number']}")
    TopkAnswer.model_validate_json(shown.content)
    assert shown.json()["prompt_ids"] == [5, 6, 7]
    [one], [expected] = shown.json()["responses"], scores.responses
    assert one["ids"] == [8, 9]
    np.testing.assert_array_equal(np.float32(one["support_logprobs"]), expected.support_logprobs_NK)


def test_the_alignment_of_a_stranger_has_a_report(client: httpx.Client) -> None:
    letters = [tokenizer_of("stranger").encode(letter, add_special_tokens=False).ids[-1] for letter in "theother"]
    shown = client.post("/v1/align", json={"response": {"ids": letters}, "tokenizer": "stranger"}).json()
    assert shown["segmentation"] == "canonical"
    assert shown["report"]["relation"] == "overlapping"
    assert not shown["report"]["is_one_to_one"]
    assert {token["status"] for token in shown["tokens"]} >= {"ok", "misaligned"}
    refused = client.post(
        "/v1/align", json={"response": {"text": "a"}, "tokenizer": "stranger", "segmentation": "mask"}
    )
    assert (refused.status_code, refused.json()["reason"]) == (400, "NOT_ONE_TO_ONE")
