"""What the scripted teacher answers at /v1/topk, as docs/http.md says: the numbers of its gRPC side, as lists."""

# K = support size

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from preceptor.v1 import teacher_pb2
from preceptor.wire import (
    LogprobDtype,
    PositionStatus,
    SegmentationPolicy,
    TokenDtype,
    decode_logprobs,
    decode_token_ids,
    encode_token_ids,
)

from tests.unit.client.scripted_teacher import honest_answer

Json = Any  # Any: the leaves are whatever JSON holds

TEXTS = {21: " Oslo", 32: ".", 80: "\n", 5: "<0xF0>"}
"""Of some tokens; the others are called after their ids."""
RESPONSE_IDS = {" Oslo.\n": [21, 32, 80]}
"""How it cuts a response."""


def topk(body: Json) -> Json:
    """What /v1/topk answers: the columns of the gRPC side's honest answer, as lists."""
    answer = honest_answer(_request(body))
    responses = [
        _response(ids, answer, index) for index, ids in enumerate(_ids(response) for response in body["responses"])
    ]
    prompt_ids = decode_token_ids(answer.prompt_ids.data, answer.prompt_ids.dtype, field="prompt_ids").tolist()
    named = {id_ for one in responses for row in (*one["support_ids"], one["ids"]) for id_ in row}
    return {
        "request_id": "r",
        "teacher": answer.teacher,
        "revision": answer.revision,
        "adapter": answer.adapter,
        "tokenizer_id": answer.tokenizer_id,
        "top_k": answer.top_k,
        "temperature": answer.temperature,
        "segmentation": SegmentationPolicy(answer.segmentation).name.lower(),
        "prompt_ids": prompt_ids,
        "responses": responses,
        "texts": {str(id_): TEXTS.get(id_, f"t{id_}") for id_ in sorted(named)},
        "teacher_texts": {str(id_): f"t{id_}" for id_ in prompt_ids},
        "timings": {"decode_ms": 1.0, "queue_ms": 2.0, "forward_ms": 3.0, "total_ms": 6.5},
    }


def _request(body: Json) -> teacher_pb2.ScoreRequest:
    wire = [teacher_pb2.Response(ids=_packed(_ids(response))) for response in body["responses"]]
    policy = body.get("segmentation")
    return teacher_pb2.ScoreRequest(
        prompt=teacher_pb2.Prompt(text=teacher_pb2.TextPrompt(text="any")),
        responses=wire,
        top_k=body["top_k"],
        temperature=body["temperature"],
        teacher=body.get("teacher", ""),
        adapter=body.get("adapter", ""),
        logprob_dtype=teacher_pb2.LOGPROB_DTYPE_F32,
        segmentation=teacher_pb2.SegmentationPolicy.ValueType(SegmentationPolicy[policy.upper()] if policy else 0),
    )


def _packed(ids: Sequence[int]) -> teacher_pb2.TokenIds:
    return teacher_pb2.TokenIds(data=encode_token_ids(np.array(ids), TokenDtype.U16), dtype=teacher_pb2.TOKEN_DTYPE_U16)


def _ids(response: Json) -> list[int]:
    return list(response["ids"] if "ids" in response else RESPONSE_IDS[response["text"]])


def _response(ids: Sequence[int], answer: teacher_pb2.ScoreResponse, index: int) -> Json:
    scores, K = answer.responses[index], answer.top_k

    def numbers(data: bytes) -> list[float]:
        return [float(value) for value in decode_logprobs(data, LogprobDtype.F32, field="column")]

    support_ids = decode_token_ids(scores.support_ids, answer.token_dtype, field="support_ids")
    support_logprobs = np.array(numbers(scores.support_logprobs))
    return {
        "ids": list(ids),
        "status": [PositionStatus(status).name.lower() for status in scores.status],
        "positions": list(range(len(ids))),
        "sampled_logprobs": numbers(scores.sampled_logprobs),
        "sampled_ranks": [None] * len(ids),
        "log_tail_mass": numbers(scores.log_tail_mass),
        "entropies": numbers(scores.entropies),
        "support_ids": support_ids.reshape(-1, K).tolist(),
        "support_logprobs": support_logprobs.reshape(-1, K).tolist(),
        "candidate_ids": None,
        "candidate_logprobs": None,
        "student_logprobs": None,
        "teacher_ids": None,
        "teacher_rows": None,
        "unmapped_mass": 0.0,
        "digest": scores.digest.hex(),
    }
