"""What may follow a prompt: the wire scores responses only, so one token is sent that nobody wrote. Which one?

Its row says what the teacher thinks before it, so it changes nothing in the row; but it must be a token that this
policy scores at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import digest_of_scored_ids

from preceptor_server.alignment.types import NO_PLACE, Alignment, TokenKind
from preceptor_server.errors import InvalidRequestError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.segmentation import find_alignment
from preceptor_server.token_ids import decode_ids


def id_to_stand_in(request: pb.ScoreRequest, teacher: HostedTeacher) -> int:
    """An id of the request's tokenizer that is scored whatever the policy. Raises UnknownTokenizerError."""
    alignment = find_alignment(request.tokenizer_id, teacher)
    if alignment is None:
        return 0
    for token_id in _candidates(alignment):
        if token_id not in request.paper_token_ids:
            return token_id
    raise InvalidRequestError("tokenizer", "has no token that stands for the same text in the teacher's")


def without_stand_in(request: pb.ScoreRequest, response: pb.ScoreResponse) -> pb.ScoreResponse:
    """The answer with what belongs to that token taken out: its row stays."""
    answer = pb.ScoreResponse()
    answer.CopyFrom(response)
    scores = answer.responses[0]
    scores.status = scores.sampled_logprobs = scores.teacher_rows = b""
    scores.ClearField("teacher_ids")
    kind = request.prompt.WhichOneof("kind")
    is_ids = kind in ("student_ids", "teacher_ids")
    ids = getattr(request.prompt, str(kind)) if is_ids else response.prompt_ids
    prompt_ids = decode_ids(ids, "prompt", num_ids=1 << 32)
    scores.digest = digest_of_scored_ids(prompt_ids, np.zeros(0, np.int64))
    return answer


def _candidates(alignment: Alignment) -> Iterator[int]:
    """Tokens without text are cut by nobody, so a pair of them comes first; else text of one byte that both have."""
    yield from (token_id for token_id in alignment.student_end_ids if token_id in alignment.special_to_teacher)
    yield from alignment.special_to_teacher
    table, counterparts = alignment.pairing.student, alignment.pairing.teacher_of_student_U
    is_text = (table.kinds_V == TokenKind.TEXT) & (counterparts[: table.size] != NO_PLACE)
    lengths = np.diff(table.offsets_V1)
    for token_id in np.flatnonzero(is_text & (lengths == 1)).tolist():
        if table.bytes_of(token_id).isalpha():
            yield int(token_id)
