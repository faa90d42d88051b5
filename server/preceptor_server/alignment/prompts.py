"""A prompt in a student's ids as the teacher reads it. Knows nothing of responses or scores."""

# P = prompt tokens

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from preceptor.wire import TokenArray

from preceptor_server.alignment.student_text import StudentText
from preceptor_server.alignment.too_long import too_long
from preceptor_server.alignment.types import NO_PLACE, Alignment, TokenKind
from preceptor_server.errors import InvalidRequestError

if TYPE_CHECKING:  # they import the libraries
    from preceptor_server.alignment.segmenter import Segmenter
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer

_WAY_OUT = "pair it with one of the teacher's (special_pairs), or send the prompt as text, chat or teacher_ids"


_CHUNK = 1 << 14
"""Ids whose bytes are counted together."""


def read_prompt(
    ids_P: TokenArray,
    alignment: Alignment,
    *,
    tokenizer: TeacherTokenizer,
    segmenter: Segmenter,
    field: str,
    room_tokens: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> TokenArray:
    """The prompt in the teacher's ids. Where ids correspond one to one these are the counterparts; else the teacher's
    tokenizer reads its text, beginning with what it adds to every text by itself.

    Raises InvalidRequestError, naming the token, where one has no counterpart: a prompt is never scored in part; and
    where they are more than `room_tokens`. `check` is called now and then, and may raise to give the prompt up.
    """
    if room_tokens is not None and _least_tokens(ids_P, alignment, tokenizer, stop_above=room_tokens) > room_tokens:
        raise too_long(field, room_tokens)
    check()
    ids = _read(ids_P, alignment, tokenizer=tokenizer, segmenter=segmenter, field=field, check=check)
    if room_tokens is not None and len(ids) > room_tokens:
        raise too_long(field, room_tokens)
    return ids


def _least_tokens(ids_P: TokenArray, alignment: Alignment, tokenizer: TeacherTokenizer, *, stop_above: int) -> int:
    """The teacher reads no fewer; known without tokenizing. Ends as soon as that is more than `stop_above`."""
    if alignment.pairing.relation.is_one_to_one:
        return len(ids_P)
    least, num_others, counts_B = 0, 0, np.zeros(256, np.int64)
    for start in range(0, len(ids_P), _CHUNK):
        chunk_P = ids_P[start : start + _CHUNK]
        text = StudentText(ids_T=chunk_P, score_mask_T=np.ones(len(chunk_P), np.bool_), alignment=alignment)
        # A token that is no text has one counterpart, or the prompt is refused.
        num_others += int((~text.is_text_T).sum())
        counts_B += np.bincount(text.data, minlength=256)
        least = num_others + tokenizer.bound.least_tokens_of(counts_B)
        if least > stop_above:
            break
    return least


def _read(
    ids_P: TokenArray,
    alignment: Alignment,
    *,
    tokenizer: TeacherTokenizer,
    segmenter: Segmenter,
    field: str,
    check: Callable[[], None],
) -> TokenArray:
    if alignment.pairing.relation.is_one_to_one:
        mapped_P = alignment.pairing.teacher_of_student_U[ids_P].astype(np.int64)
        if (mapped_P == NO_PLACE).any():
            raise _without_counterpart(ids_P, int(np.argmax(mapped_P == NO_PLACE)), alignment, field=field)
        return mapped_P
    text = StudentText(ids_T=ids_P, score_mask_T=np.ones(len(ids_P), np.bool_), alignment=alignment)
    if text.is_text_T.all():
        whole = _as_utf8(text.data.tobytes())
        if whole is not None:
            return tokenizer.encode(whole, add_special_tokens=True, field=field, check=check)
    parts: list[TokenArray] = []
    segmentations = iter(segmenter.segment(text.pieces))
    begins = set(text.piece_starts)
    for position, is_text in enumerate(text.is_text_T.tolist()):
        if is_text:
            if position == 0 or not text.is_text_T[position - 1]:
                assert int(text.starts_T[position]) in begins
                parts.append(next(segmentations).ids_M)
            continue
        counterpart = alignment.special_to_teacher.get(int(ids_P[position]))
        if counterpart is None:
            raise _without_counterpart(ids_P, position, alignment, field=field)
        parts.append(np.array([counterpart], np.int64))
    ids = np.concatenate(parts)
    prefix = tokenizer.prefix_ids
    return ids if np.array_equal(ids[: len(prefix)], prefix) else np.concatenate([prefix, ids])


def _as_utf8(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _without_counterpart(ids_P: TokenArray, position: int, alignment: Alignment, *, field: str) -> InvalidRequestError:
    student, token_id = alignment.pairing.student, int(ids_P[position])
    if token_id == student.unknown_id:
        return InvalidRequestError(
            field,
            f"token id {token_id} {student.special_texts[token_id]!r} at position {position} stands for text that the "
            "student's tokenizer lacks, and nobody knows which: send the prompt as text, chat or teacher_ids",
            reason="UNMAPPED_TOKEN",
        )
    kind = TokenKind(student.kinds_V[token_id])
    named = f" {student.special_texts[token_id]!r}" if kind is TokenKind.SPECIAL else ""
    return InvalidRequestError(
        field,
        f"token id {token_id}{named} at position {position} has no counterpart in the teacher's vocabulary: {_WAY_OUT}",
        reason="UNMAPPED_TOKEN",
    )
