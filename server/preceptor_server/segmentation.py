"""Which alignment and which policy a request is scored by, and whether they fit each other."""

from __future__ import annotations

from preceptor.wire import SegmentationPolicy, VocabularyRelation

from preceptor_server.alignment.types import Alignment
from preceptor_server.calls import ScoreCall
from preceptor_server.errors import InvalidRequestError, NotYetImplementedError
from preceptor_server.hosted import HostedTeacher

MAX_PAPER_TOKENS = 1024
_MAX_SHOWN_NAME = 128


def choose_alignment(call: ScoreCall, teacher: HostedTeacher) -> tuple[Alignment | None, SegmentationPolicy]:
    """The alignment, None where ids are the teacher's own and scored unchanged, and the policy as applied.

    Raises InvalidRequestError (UnknownTokenizerError among them) or NotYetImplementedError, with the field's name.
    """
    alignment = find_alignment(call.tokenizer_id, teacher)
    if alignment is None:
        if call.segmentation in (None, SegmentationPolicy.AS_IS):
            _check_paper_tokens(call, SegmentationPolicy.AS_IS, num_ids=0)
            return None, SegmentationPolicy.AS_IS
        raise NotYetImplementedError(
            "segmentation", "this teacher has no tokenizer that it could segment with: use AS_IS, or leave it out"
        )
    policy = _policy(call, alignment)
    _check_paper_tokens(call, policy, num_ids=alignment.pairing.student.size)
    is_unaligned = policy is SegmentationPolicy.AS_IS and alignment.pairing.relation is VocabularyRelation.IDENTICAL
    return None if is_unaligned else alignment, policy


def find_alignment(tokenizer_id: str, teacher: HostedTeacher) -> Alignment | None:
    """The alignment of that id, empty for the teacher's own; None where this teacher aligns nothing."""
    if teacher.aligner is None:
        if tokenizer_id in ("", teacher.tokenizer_id):
            return None
        raise NotYetImplementedError(
            "tokenizer_id",
            f"{tokenizer_id[:_MAX_SHOWN_NAME]!r} is not the teacher's own tokenizer ({teacher.tokenizer_id!r}), and "
            "this teacher cannot align others: it has no tokenizer whose tokens are known as bytes",
        )
    return teacher.aligner.registry.get(tokenizer_id or teacher.tokenizer_id)


def _policy(call: ScoreCall, alignment: Alignment) -> SegmentationPolicy:
    relation = alignment.pairing.relation
    if call.segmentation is None:
        return SegmentationPolicy.AS_IS if relation.is_one_to_one else SegmentationPolicy.CANONICAL
    policy = call.segmentation
    if policy is not SegmentationPolicy.CANONICAL and not relation.is_one_to_one:
        raise InvalidRequestError(
            "segmentation",
            f"{policy.name} scores the student's own ids, and the vocabularies are {relation.name}, not one to one: "
            "use CANONICAL",
            reason="NOT_ONE_TO_ONE",
        )
    return policy


def _check_paper_tokens(call: ScoreCall, policy: SegmentationPolicy, *, num_ids: int) -> None:
    ids, is_paper = call.paper_token_ids, policy is SegmentationPolicy.PAPER
    if is_paper != bool(ids):
        message = "is empty: PAPER needs at least one id" if is_paper else f"belongs to PAPER, not to {policy.name}"
        raise InvalidRequestError("paper_token_ids", message)
    if len(ids) > MAX_PAPER_TOKENS:
        raise InvalidRequestError("paper_token_ids", f"holds {len(ids)} ids, at most {MAX_PAPER_TOKENS} are allowed")
    if ids and max(ids) >= num_ids:
        raise InvalidRequestError(
            "paper_token_ids", f"holds {max(ids)}, outside the vocabulary [0, {num_ids})", reason="TOKEN_OUT_OF_RANGE"
        )
