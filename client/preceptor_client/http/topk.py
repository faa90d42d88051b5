"""The answer of /v1/topk as the scores that gRPC gives: lists become arrays, and are verified like those."""

# T = tokens of a response, M = the teacher's tokens for it, N = scored positions, K = support size

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from preceptor.wire import LogprobArray, LogprobDtype, PositionStatus, SegmentationPolicy

from preceptor_client import verify
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.http.answers import Logprob, ScoredResponse, Topk
from preceptor_client.types import GroupScores, ResponseScores


def scores_of(answer: Topk) -> GroupScores:
    """Raises CorruptAnswerError where the columns are no distributions, or other ids were scored than the answer says.

    For answers in f32 to prompts of text or messages, without masks and candidates, which is what a person asks.
    """
    policy = _policy(answer.segmentation)
    prompt_ids_P = np.array(answer.prompt_ids, np.int64)
    responses = []
    for index, one in enumerate(answer.responses):
        scores = _response_scores(one, index=index, top_k=answer.top_k)
        verify.verify_response(
            scores,
            index=index,
            prompt_ids_P=prompt_ids_P,
            response_ids_T=np.array(one.ids, np.int64),
            score_mask_T=np.ones(len(one.ids), np.bool_),
            logprob_dtype=LogprobDtype.F32,
            segmentation=policy,
            digest=_digest(one.digest, index=index),
        )
        responses.append(scores)
    verify.verify_alike(responses)
    return GroupScores(
        teacher=answer.teacher,
        revision=answer.revision,
        tokenizer_id=answer.tokenizer_id,
        top_k=answer.top_k,
        temperature=answer.temperature,
        segmentation=policy,
        prompt_ids=prompt_ids_P,
        responses=tuple(responses),
        timings=answer.timings,
    )


def _policy(name: str) -> SegmentationPolicy:
    try:
        return SegmentationPolicy[name.upper()]
    except KeyError as error:
        raise CorruptAnswerError(f"segmentation is {name!r}: this client knows no such policy") from error


def _response_scores(one: ScoredResponse, *, index: int, top_k: int) -> ResponseScores:
    status_T = np.array([_status(name, index=index) for name in one.status], np.uint8)
    positions_N = np.array(one.positions, np.int64)
    _check_sizes(one, index=index, top_k=top_k)
    if not np.array_equal(positions_N, np.flatnonzero(status_T == PositionStatus.OK)):
        raise verify.corrupt(index, "positions", "are others than those whose status is ok")
    N, K = len(positions_N), top_k
    return ResponseScores(
        status_T=status_T,
        positions_N=positions_N,
        support_ids_NK=np.array(one.support_ids, np.int64).reshape(N, K),
        support_logprobs_NK=_logprobs([value for row in one.support_logprobs for value in row]).reshape(N, K),
        sampled_logprobs_N=_logprobs(one.sampled_logprobs),
        log_tail_mass_N=_logprobs(one.log_tail_mass),
        entropies_N=None if one.entropies is None else np.array(one.entropies, np.float32),
        teacher_ids_M=None if one.teacher_ids is None else np.array(one.teacher_ids, np.int64),
        teacher_rows_N=None if one.teacher_rows is None else np.array(one.teacher_rows, np.int64),
        unmapped_mass=one.unmapped_mass,
    )


def _check_sizes(one: ScoredResponse, *, index: int, top_k: int) -> None:
    N = len(one.positions)
    sized = {
        "status": (len(one.status), len(one.ids)),
        "sampled_logprobs": (len(one.sampled_logprobs), N),
        "log_tail_mass": (len(one.log_tail_mass), N),
        "entropies": (N if one.entropies is None else len(one.entropies), N),
    }
    for name, (size, expected) in sized.items():
        if size != expected:
            raise verify.corrupt(index, name, f"holds {size} entries instead of {expected}")
    for name, rows in (("support_ids", one.support_ids), ("support_logprobs", one.support_logprobs)):
        if [len(row) for row in rows] != [top_k] * N:
            raise verify.corrupt(index, name, f"does not hold {N} rows of {top_k}")


def _status(name: str, *, index: int) -> PositionStatus:
    try:
        return PositionStatus[name.upper()]
    except KeyError as error:
        raise verify.corrupt(index, "status", f"holds {name!r}, which this client does not know") from error


def _logprobs(values: Sequence[Logprob]) -> LogprobArray:
    return np.array([-np.inf if value is None else value for value in values], np.float32)


def _digest(digest: str, *, index: int) -> bytes:
    try:
        return bytes.fromhex(digest)
    except ValueError as error:
        raise verify.corrupt(index, "digest", f"is {digest[:16]!r}, which is not hexadecimal") from error
