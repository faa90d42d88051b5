"""Reads the ids that a request names for each position of a response. Every mistake is told by field."""

# T = tokens of a response, C = candidates per position

from __future__ import annotations

from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import SegmentationPolicy, TokenArray

from preceptor_server.errors import InvalidRequestError, NotYetImplementedError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.token_ids import decode_ids


def decode_candidates(
    response: pb.Response,
    field: str,
    *,
    num_tokens: int,
    num_ids: int,
    segmentation: SegmentationPolicy,
    teacher: HostedTeacher,
) -> TokenArray | None:
    """The student's ids to score, [T, C]; None where the response names none. `field` is the response's.

    Raises InvalidRequestError, or NotYetImplementedError where this teacher, or this policy, cannot answer them.
    """
    if not response.HasField("candidates"):
        return None
    field, candidates = f"{field}.candidates", response.candidates
    _check_possible(field, segmentation, teacher)
    num_per_position = candidates.num_per_position
    if not 1 <= num_per_position <= teacher.max_top_k:
        raise InvalidRequestError(
            f"{field}.num_per_position", f"{num_per_position} is outside [1, {teacher.max_top_k}]"
        )
    ids = decode_ids(candidates.ids, f"{field}.ids", num_ids=num_ids)
    if len(ids) != num_tokens * num_per_position:
        raise InvalidRequestError(
            f"{field}.ids",
            f"holds {len(ids)} ids for {num_tokens} tokens: send num_per_position={num_per_position} for each token, "
            f"{num_tokens * num_per_position} in all",
            reason="MALFORMED_COLUMN",
        )
    return ids.reshape(num_tokens, num_per_position)


def _check_possible(field: str, segmentation: SegmentationPolicy, teacher: HostedTeacher) -> None:
    if not teacher.info.scores_candidates:
        raise NotYetImplementedError(field, "this engine scores no ids that the caller names: leave them out")
    # Ids that do not correspond one to one are scored by no other policy.
    if segmentation is SegmentationPolicy.CANONICAL:
        raise NotYetImplementedError(
            field,
            "they need ids that correspond one to one and the segmentation AS_IS, MASK or PAPER, and this request is "
            "scored by CANONICAL: leave them out, or set another segmentation where ids correspond",
        )
