"""Whatever two vocabularies and a text: the client accepts what the server answers, and finds what was changed."""

# T = tokens of a response, N = scored positions, K = support size

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy, digest_of_scored_ids
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.types import ResponseScores
from preceptor_client.verify import verify_response
from preceptor_server.alignment.byte_level import ALPHABET
from preceptor_server.alignment.pairing import pair, read_teacher
from preceptor_server.alignment.projection import num_teacher_tokens, project
from preceptor_server.alignment.reader import Reader
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.specials import align
from preceptor_server.alignment.types import Alignment
from preceptor_server.types import ResponseToScore
from tokenizers import Tokenizer

from tests.engines.fake import dense_columns
from tests.unit.server.alignment.tokenizers_for_tests import SPECIALS, metaspace_bpe, plain_unigram, small_bpe

K = 4
BYTES_ONLY = -1
"""In place of a seed: the vocabulary in which each byte is a token."""
LETTERS = "  \n\tabde"
texts = st.lists(
    st.one_of(st.text("  ab\n", max_size=8), st.sampled_from(["   ", "\u0645\u0631", "\U0001f600", "the dog", " a"])),
    min_size=1,
    max_size=8,
).map("".join)
sides = st.one_of(st.just(BYTES_ONLY), st.integers(0, 11), st.sampled_from(["metaspace", "unigram"]))
Side = int | str


@cache
def tokenizer_json(side: Side) -> str:
    """Byte-level BPE with random merges, many of them of spaces; or one that cannot write every text."""
    if side == "metaspace":
        return metaspace_bpe()
    if side == "unigram":
        return plain_unigram()
    letters = [ALPHABET[byte] for byte in LETTERS.encode()]
    rng, merges = random.Random(side), []
    tokens = [*letters]
    for _ in range(0 if side == BYTES_ONLY else 40):
        left, right = rng.choice(tokens), rng.choice(tokens)
        if left + right not in tokens:
            merges.append((left, right))
            tokens.append(left + right)
    pieces = dict.fromkeys([*ALPHABET, *tokens])
    return small_bpe({piece: index for index, piece in enumerate(pieces)}, merges)


@cache
def alignment_of(student: Side, teacher: Side) -> tuple[Alignment, Reader]:
    own = tokenizer_json(teacher)
    vocabulary = read_teacher(own, None, vocabulary_size=Tokenizer.from_str(own).get_vocab_size())
    pairing = pair(tokenizer_json(student), chat_template=None, vocabulary_size=0, teacher=vocabulary)
    ends = [(_end_of(side),) for side in (student, teacher)]
    alignment = align(
        pairing, teacher=vocabulary, tokenizer_id="", end_token_ids=ends[0], teacher_end_ids=ends[1], special_pairs={}
    )
    return alignment, Reader(Segmenter(own, vocabulary.table))


def _end_of(side: Side) -> int:
    return SPECIALS.index("</s>") if isinstance(side, str) else 0


@dataclass(frozen=True)
class Answer:
    """What the client gets to see."""

    scores: ResponseScores
    ids: Sequence[int]

    def verify(self) -> None:
        ids_T, prompt_ids_P = np.array(self.ids, np.int64), np.array([1], np.int64)
        verify_response(
            self.scores,
            index=0,
            prompt_ids_P=prompt_ids_P,
            response_ids_T=ids_T,
            score_mask_T=np.ones(len(ids_T), np.bool_),
            logprob_dtype=LogprobDtype.F32,
            segmentation=SegmentationPolicy.CANONICAL,
            digest=digest_of_scored_ids(prompt_ids_P, ids_T),
        )


def answer(student: Side, teacher: Side, ids: Sequence[int], *, seed: int = 0) -> Answer:
    """The server's, of a teacher with random logits."""
    alignment, reader = alignment_of(student, teacher)
    size = len(alignment.projection_V)
    response = ResponseToScore(ids_T=np.array(ids, np.int64), score_mask_T=np.ones(len(ids), np.bool_))
    reading = reader.read([response], alignment, policy=SegmentationPolicy.CANONICAL, room=10_000)[0]
    asked = ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M)
    logits_MV = np.random.default_rng(seed).normal(0, 3, (len(reading.teacher_ids_M), size))
    top_k = num_teacher_tokens(alignment, top_k=K, merges_end_tokens=True)
    columns = dense_columns(logits_MV, asked, top_k=top_k)
    projected = project(columns, reading, alignment, top_k=K, merges_end_tokens=True)
    columns = projected.columns
    return Answer(
        ResponseScores(
            status_T=columns.status_T,
            positions_N=np.flatnonzero(columns.status_T == PositionStatus.OK),
            support_ids_NK=columns.support_ids_NK,
            support_logprobs_NK=columns.support_logprobs_NK,
            sampled_logprobs_N=columns.sampled_logprobs_N,
            log_tail_mass_N=columns.log_tail_mass_N,
            entropies_N=columns.entropies_N,
            teacher_ids_M=reading.teacher_ids_M,
            teacher_rows_N=projected.rows_N,
            unmapped_mass=projected.unmapped_mass,
        ),
        ids,
    )


def ids_of(student: Side, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(tokenizer_json(student)).encode(text, add_special_tokens=False).ids
    return ids or [0]


RANDOM = settings(
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@given(student=sides, teacher=sides, text=texts, seed=st.integers(0, 3))
@RANDOM
def test_what_the_server_answers_of_a_text_is_accepted(student: Side, teacher: Side, text: str, seed: int) -> None:
    answer(student, teacher, ids_of(student, text), seed=seed).verify()


@given(student=sides, teacher=sides, places=st.lists(st.floats(0, 0.999), min_size=1, max_size=20))
@RANDOM
def test_what_the_server_answers_of_any_ids_is_accepted(student: Side, teacher: Side, places: list[float]) -> None:
    size = alignment_of(student, teacher)[0].pairing.student.size
    answer(student, teacher, [int(place * size) for place in places]).verify()


@pytest.mark.parametrize("spaces", range(1, 6))
def test_a_byte_only_student_shares_a_teachers_token_between_two_at_most(spaces: int) -> None:
    """The space that begins the teacher's token, and what follows it; one that ends the token before lies inside."""
    ids = ids_of(BYTES_ONLY, "a" + " " * spaces + "be")
    for teacher in range(12):
        given_answer = answer(BYTES_ONLY, teacher, ids)
        given_answer.verify()
        assert given_answer.scores.teacher_rows_N is not None
        assert np.bincount(given_answer.scores.teacher_rows_N).max() <= 2


Change = Callable[[ResponseScores], ResponseScores]


def rows(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(scores: ResponseScores) -> ResponseScores:
        assert scores.teacher_rows_N is not None
        return replace(scores, teacher_rows_N=edit(scores.teacher_rows_N))

    return change


CHANGES: dict[str, Change] = {
    "a third position at one token": rows(lambda rows_N: np.concatenate([rows_N[:1].repeat(3), rows_N[3:]])),
    "a row before the one before": rows(lambda rows_N: rows_N[::-1]),
    "a row beyond the ids": rows(lambda rows_N: rows_N + 1000),
    "a row missing": rows(lambda rows_N: rows_N[1:]),
    "a sampled logprob off": lambda s: replace(s, sampled_logprobs_N=np.zeros_like(s.sampled_logprobs_N)),
    "a tail too large": lambda s: replace(s, log_tail_mass_N=np.zeros_like(s.log_tail_mass_N)),
    "a support twice": lambda s: replace(s, support_ids_NK=s.support_ids_NK[:, :1].repeat(K, axis=1)),
    "supports of other rows": lambda s: replace(s, support_logprobs_NK=s.support_logprobs_NK[:, ::-1]),
    "more unmapped than there is tail": lambda s: replace(s, unmapped_mass=2.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("student", [BYTES_ONLY, 0, 1])
def test_what_was_changed_in_an_answer_is_found(change: str, student: Side) -> None:
    good = answer(student, 2, ids_of(student, "a  be da\n  deb  a ed ab" * 2))
    good.verify()
    assert len(good.scores.positions_N) > 8
    with pytest.raises(CorruptAnswerError):
        replace(good, scores=CHANGES[change](good.scores)).verify()
