"""Before the server answers anyone: does what comes back through the alignment belong to the tokens that it is said of?

The teacher is treated as a stranger to itself, so that its answers take the long way through segmentation and
projection, and are held against a plain forward position by position: a shift by one token fails, which a mean over
positions would not show.
"""

# T = tokens of the canary, U = V = vocabulary size

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from preceptor.wire import SegmentationPolicy, TokenArray, VocabularyRelation

from preceptor_server.alignment.aligner import Aligner
from preceptor_server.alignment.pairing import own_pairing
from preceptor_server.alignment.projection import num_teacher_tokens, project
from preceptor_server.alignment.types import Alignment
from preceptor_server.engines.base import Engine
from preceptor_server.errors import InvalidTokenizerError
from preceptor_server.selftest import check_against_reference
from preceptor_server.types import ResponseToScore, ScoreGroup

logger = logging.getLogger(__name__)

CANARY = (
    "The clocks were striking thirteen.\n\n    def area(r):\n        return 3.14159 * r ** 2  # 12,345\n"
    "\tnaïve café 你好，世界 مرحبا 🙂🎉 <think>ok</think>"
)
"""Prose, code, digits, white space, accents, Chinese, Arabic, emoji, and a tag that tokenizers cut unlike."""
_TOP_K = 8


async def check_alignment(engine: Engine, aligner: Aligner) -> float:
    """Scores the canary through the alignment. Returns the largest difference from a plain forward, in nats.

    Raises InvalidTokenizerError where the tokenizer is not one that alignment can rely on, and StartupError where a
    position is off by more than arithmetic explains.
    """
    info = engine.info()
    ids_T = _canary_ids(aligner, room=info.max_model_len // 2)
    response = ResponseToScore(ids_T=ids_T, score_mask_T=np.ones(len(ids_T), np.bool_))
    alignment = _as_a_stranger(aligner)
    policy, room = SegmentationPolicy.CANONICAL, info.max_model_len - 1
    reading = aligner.reader.read([response], alignment, policy=policy, room=room)[0]
    if not np.array_equal(reading.teacher_ids_M, ids_T) or not np.array_equal(reading.rows_N, np.arange(len(ids_T))):
        raise InvalidTokenizerError(
            "it cuts the bytes of its own tokens into other tokens, so it cannot be laid beside another",
            reason="UNSUPPORTED_TOKENIZER",
        )
    top_k = min(_TOP_K, info.largest_top_k)
    asked = min(num_teacher_tokens(alignment, top_k=top_k, merges_end_tokens=True), info.largest_top_k)
    group = ScoreGroup(
        prompt_ids_P=ids_T[:1],
        responses=(ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M),),
        top_k=asked,
        temperature=1.0,
    )
    columns = (await engine.score([group]))[0][0]
    projected = project(columns, reading, alignment, top_k=top_k, merges_end_tokens=True)
    worst = await check_against_reference(engine, replace(group, top_k=top_k), (projected.columns,))
    logger.info("alignment self-test passed positions=%d largest_difference_nats=%.2e", len(ids_T), worst)
    return worst


def _canary_ids(aligner: Aligner, *, room: int) -> TokenArray:
    """The canary as the teacher writes it, as far as it can and as far as there is room."""
    table = aligner.vocabulary.table
    for text in (CANARY.encode(), CANARY.encode()[: max(room // 2, 1)]):
        ids = aligner.segmenter.segment([text])[0].ids_M
        known = b"".join(table.bytes_of(int(token_id)) for token_id in ids)
        ids = aligner.segmenter.segment([known])[0].ids_M
        if 0 < len(ids) <= room:
            return ids
    raise InvalidTokenizerError("it can write nothing of a plain English text", reason="UNSUPPORTED_TOKENIZER")


def _as_a_stranger(aligner: Aligner) -> Alignment:
    """The teacher as its own student, as if their vocabularies had nothing to do with each other."""
    pairing = own_pairing(aligner.vocabulary, vocabulary_size=0)
    pairing = replace(pairing, relation=VocabularyRelation.OVERLAPPING)
    return Alignment(
        tokenizer_id="canary",
        pairing=pairing,
        projection_V=_everything_in_its_place(aligner.vocabulary.table.size),
        special_to_teacher={},
        student_end_ids=(),
        teacher_end_ids=(),
        paired=(),
        masked_ids=(),
        dropped_ids=(),
        unknown_read_as=None,
        mapped_share=1.0,
        projected_share=1.0,
        warnings=(),
    )


def _everything_in_its_place(size: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Padding too: the plain forward that the answer is held against gives it mass."""
    return np.arange(size, dtype=np.int32)
