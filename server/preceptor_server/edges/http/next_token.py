"""Scores the next-token distribution after a prompt, by appending a placeholder token as the response.

The placeholder's row says what the teacher thinks before it, so it changes nothing in the row; but it must be a token
that the segmentation policy scores at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from preceptor.wire import digest_of_scored_ids

from preceptor_server.alignment.types import NO_PLACE, Alignment, TokenKind
from preceptor_server.calls import ScoreCall, ScoredCall, StudentIds
from preceptor_server.errors import InvalidRequestError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.segmentation import find_alignment


def placeholder_id(tokenizer_id: str, teacher: HostedTeacher, *, paper_token_ids: Sequence[int]) -> int:
    """An id of that tokenizer that is scored whatever the policy. Raises UnknownTokenizerError."""
    alignment = find_alignment(tokenizer_id, teacher)
    if alignment is None:
        return 0
    for token_id in _candidates(alignment):
        if token_id not in paper_token_ids:
            return token_id
    raise InvalidRequestError("tokenizer", "has no token that stands for the same text in the teacher's")


def without_placeholder(call: ScoreCall, scored: ScoredCall) -> ScoredCall:
    """The answer with what belongs to that token taken out: its row stays, without a logprob of its own."""
    [response] = scored.responses
    prompt_ids = call.prompt.ids_P if isinstance(call.prompt, StudentIds) else scored.prompt_ids_P
    columns = replace(response.columns, status_T=np.zeros(0, np.uint8), sampled_logprobs_N=np.zeros(0, np.float32))
    stripped = replace(
        response,
        columns=columns,
        digest=digest_of_scored_ids(prompt_ids, np.zeros(0, np.int64)),
        teacher_ids_M=None,
        teacher_rows_N=None,
    )
    return replace(scored, responses=(stripped,))


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
