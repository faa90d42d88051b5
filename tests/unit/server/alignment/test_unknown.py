"""Tokenizers that cannot write every text, in both roles, against a computation with dictionaries."""

# N = positions, V = teacher's vocabulary

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from preceptor.wire import PositionStatus, SegmentationPolicy
from preceptor_server.alignment.exchange import pack_pairing, unpack_pairing
from preceptor_server.alignment.pairing import pair, read_teacher
from preceptor_server.alignment.projection import Projected, project
from preceptor_server.alignment.prompts import read_prompt
from preceptor_server.alignment.reader import Reader
from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.specials import align
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.token_table import padded
from preceptor_server.alignment.types import NO_PLACE, Alignment, TeacherVocabulary
from preceptor_server.errors import InvalidRequestError
from preceptor_server.types import ResponseToScore
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.engines.fake import dense_columns
from tests.unit.server.alignment.brute_force import BruteForce, Library, Score
from tests.unit.server.alignment.tokenizers_for_tests import FAMILIES, WITHOUT_BYTES

TEXTS = {
    "Arabic": "the \u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 dog",
    "Hindi": "\u0928\u092e\u0938\u094d\u0924\u0947 the fox",
    "emoji": "fine \U0001f600\U0001f680 dogs, \U0001f680the",
    "Chinese": "\u4f60\u597d \u4e16\u754c\u6f22\u5b57 is 12",
    "mixed": "caf\u00e9 \u0645the\u0931 \u4f60 x\n\n\ty  \u0915 brothers",
    "capitals": "The Fox jumps Over",
    "code": "def f():\n        return 1  # \u0645\n",
}


ALL = FAMILIES | WITHOUT_BYTES
WRITERS = ("byte_level", "gemma_like", "with_nfc")
"""Some that can write every text; pairs of these are the oracle's proof that it means what the server means."""


@cache
def library(family: str) -> Library:
    return Library(ALL[family]())


@cache
def vocabulary(family: str) -> TeacherVocabulary:
    return read_teacher(ALL[family](), None, vocabulary_size=library(family).size)


@cache
def reader(family: str) -> Reader:
    return Reader(Segmenter(ALL[family](), vocabulary(family).table))


def ends_of(side: Library) -> tuple[int, ...]:
    return tuple(token for token, text in side.specials.items() if text in ("</s>", "<|end|>"))


@cache
def alignment(student: str, teacher: str) -> Alignment:
    pairing = pair(ALL[student](), chat_template=None, vocabulary_size=0, teacher=vocabulary(teacher))
    return align(
        pairing,
        teacher=vocabulary(teacher),
        tokenizer_id="test",
        end_token_ids=ends_of(library(student)),
        teacher_end_ids=ends_of(library(teacher)),
        special_pairs={},
    )


@cache
def probabilities(ids: tuple[int, ...], size: int) -> tuple[float, ...]:
    """A teacher whose every row depends on all that it read."""
    seed = int.from_bytes(hashlib.sha256(repr(ids).encode()).digest()[:8])
    logits = np.random.default_rng(seed).normal(0, 2, size)
    exponentials = np.exp(logits - logits.max())
    return tuple((exponentials / exponentials.sum()).tolist())


def ask(student: str, teacher: str, ids: Sequence[int]) -> tuple[Reading, Projected]:
    """The server's answer, with every token of the teacher asked for."""
    found, size = alignment(student, teacher), library(teacher).size
    response = ResponseToScore(ids_T=np.array(ids, np.int64), score_mask_T=np.ones(len(ids), np.bool_))
    policy = SegmentationPolicy.CANONICAL
    reading = reader(teacher).read([response], found, policy=policy, room=10_000)[0]
    read = tuple(reading.teacher_ids_M.tolist())
    rows = [probabilities(read[:row], size) for row in range(len(read))]
    asked = ResponseToScore(ids_T=reading.teacher_ids_M, score_mask_T=reading.wanted_M)
    columns = dense_columns(np.log(np.array(rows).reshape(-1, size)), asked, top_k=size)
    return reading, project(columns, reading, found, top_k=library(student).size, merges_end_tokens=True)


def expect(student: str, teacher: str, ids: Sequence[int]) -> tuple[list[int], list[Score]]:
    sides = library(student), library(teacher)
    force = BruteForce(
        student=sides[0], teacher=sides[1], student_ends=ends_of(sides[0]), teacher_ends=ends_of(sides[1])
    )
    return force.score(ids, lambda read: probabilities(read, sides[1].size))


def compare(student: str, teacher: str, ids: Sequence[int]) -> int:
    """Holds the server's answer against the computation; returns the number of positions with a score."""
    reading, projected = ask(student, teacher, ids)
    read, scores = expect(student, teacher, ids)
    assert reading.teacher_ids_M.tolist() == read
    columns, row = projected.columns, 0
    assert [PositionStatus(s).name for s in columns.status_T] == [score.status.name for score in scores]
    for token, score in zip(ids, scores, strict=True):
        if score.status is not PositionStatus.OK:
            continue
        given = {
            int(own): math.exp(logprob)
            for own, logprob in zip(columns.support_ids_NK[row], columns.support_logprobs_NK[row], strict=True)
            if logprob > -np.inf
        }
        wanted = {own: mass for own, mass in score.masses.items() if mass > 1e-9}
        for own in given.keys() | wanted.keys():
            assert given.get(own, 0.0) == pytest.approx(wanted.get(own, 0.0), rel=1e-5, abs=1e-7), own
        assert math.exp(columns.sampled_logprobs_N[row]) == pytest.approx(score.masses.get(token, 0.0), rel=1e-5)
        tail = 1.0 - sum(score.masses.values())
        assert math.exp(columns.log_tail_mass_N[row]) == pytest.approx(tail, rel=1e-5, abs=1e-6)
        row += 1
    assert row == len(columns.sampled_logprobs_N)
    return row


def pairs() -> list[tuple[str, str]]:
    """Every tokenizer that cannot write every text, as student and as teacher of each other kind."""
    # One that lacks bytes writes its sign for parts of characters: the computation knows only whole ones.
    lacking = ["unigram", *(family for family in WITHOUT_BYTES if family != "with_few_letters")]
    chosen = [(a, b) for a in (*WRITERS, *lacking) for b in (*WRITERS, *lacking) if a != b]
    return [pair for pair in chosen if not alignment(*pair).pairing.relation.is_one_to_one]


@pytest.mark.parametrize(("student", "teacher"), pairs())
def test_scores_are_those_of_a_plain_computation(student: str, teacher: str) -> None:
    num_scored = 0
    for text in TEXTS.values():
        ids = [*library(student).encode(text), *ends_of(library(student))]
        num_scored += compare(student, teacher, ids)
    assert num_scored > 0


def unknown_of(family: str) -> int:
    token = library(family).unknown
    assert token is not None
    return token


def test_between_strangers_what_neither_can_write_is_read_and_not_scored() -> None:
    student, teacher = "metaspace_bpe", "plain_unigram"
    ids = [*library(student).encode("the"), unknown_of(student), *library(student).encode(" dog")]
    reading, projected = ask(student, teacher, ids)
    assert projected.columns.status_T[1] == PositionStatus.SPECIAL
    assert (projected.columns.status_T[[0, 2]] == PositionStatus.OK).all()
    assert reading.teacher_ids_M.tolist().count(unknown_of(teacher)) == 1
    assert not reading.wanted_M[reading.teacher_ids_M == unknown_of(teacher)].any()


def test_a_teacher_that_can_write_everything_reads_nothing_for_what_nobody_knows() -> None:
    """Its own <unk> is a token that no text ever becomes, which its model has hardly seen."""
    ids = [*library("metaspace_bpe").encode("the"), unknown_of("metaspace_bpe")]
    reading, projected = ask("metaspace_bpe", "gemma_like", ids)
    assert unknown_of("gemma_like") not in reading.teacher_ids_M
    assert projected.columns.status_T[-1] == PositionStatus.SPECIAL


@pytest.mark.parametrize(("student", "teacher"), [("metaspace_bpe", "plain_unigram"), ("gemma_like", "unigram")])
def test_the_teachers_mass_on_its_unknown_is_nobodys(student: str, teacher: str) -> None:
    assert library(student).specials[unknown_of(student)] == library(teacher).specials[unknown_of(teacher)] == "<unk>"
    found = alignment(student, teacher)
    assert found.projection_V[unknown_of(teacher)] == NO_PLACE
    assert unknown_of(student) not in found.projection_V
    assert unknown_of(teacher) in found.dropped_ids
    assert any("text that the teacher's tokenizer lacks reaches the teacher as <unk>" in w for w in found.warnings)


def test_where_ids_correspond_one_to_one_the_unknown_is_the_same_event() -> None:
    found = alignment("metaspace_bpe", "metaspace_bpe")
    unknown = unknown_of("metaspace_bpe")
    assert found.special_to_teacher[unknown] == unknown
    assert found.projection_V[unknown] == unknown
    ids = library("metaspace_bpe").encode("the \u0645 dog")
    assert unknown in ids
    _, projected = ask("metaspace_bpe", "metaspace_bpe", ids)
    assert (projected.columns.status_T == PositionStatus.OK).all()


@pytest.mark.parametrize(
    ("pairs", "ends", "is_scored"),
    [({}, False, False), ({"<unk>": "</s>"}, False, True), ({}, True, True)],
    ids=["by itself", "paired by hand", "an end token too"],
)
def test_an_unknown_with_a_role_besides_has_that_role(pairs: dict[str, str], ends: bool, is_scored: bool) -> None:
    student, teacher = "metaspace_bpe", "plain_unigram"
    found = align(
        alignment(student, teacher).pairing,
        teacher=vocabulary(teacher),
        tokenizer_id="test",
        end_token_ids=(unknown_of(student),) if ends else (),
        teacher_end_ids=ends_of(library(teacher)),
        special_pairs=pairs,
    )
    response = ResponseToScore(ids_T=np.array([unknown_of(student)]), score_mask_T=np.ones(1, np.bool_))
    policy = SegmentationPolicy.CANONICAL
    reading = reader(teacher).read([response], found, policy=policy, room=9)[0]
    assert bool(reading.status_T[0] == PositionStatus.OK) is is_scored
    expected = ends_of(library(teacher))[0] if is_scored else unknown_of(teacher)
    assert reading.teacher_ids_M.tolist() == [expected]


def test_a_prompt_of_ids_that_holds_an_unknown_is_refused_with_a_way_out() -> None:
    found = alignment("metaspace_bpe", "byte_level")
    teacher = TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(ALL["byte_level"]())))
    ids_P = np.array([*library("metaspace_bpe").encode("the \u0645")], np.int64)
    segmenter = Segmenter(ALL["byte_level"](), vocabulary("byte_level").table)
    with pytest.raises(InvalidRequestError, match=r"prompt: token id 0 '<unk>' at position 2 stands for text that the"):
        read_prompt(ids_P, found, tokenizer=teacher, segmenter=segmenter, field="prompt")


KNOWN_AS = {
    "metaspace_bpe": "<unk>",
    "plain_unigram": "<unk>",
    "unigram": "<unk>",
    "with_some_bytes": "<unk>",
    "with_few_letters": "<unk>",
    "metaspace_bpe_dropping": None,
    "gemma_like": None,
    "llama2_like": None,
    "byte_level": None,
}


@pytest.mark.parametrize("family", KNOWN_AS)
def test_only_what_text_can_become_is_an_unknown(family: str) -> None:
    table = vocabulary(family).table
    assert (None if table.unknown_id is None else table.special_texts[table.unknown_id]) == KNOWN_AS[family]
    assert padded(table, size=table.size + 3).unknown_id == table.unknown_id


def test_the_unknown_survives_the_way_to_the_worker_and_back() -> None:
    pairing = alignment("metaspace_bpe", "plain_unigram").pairing
    assert pairing.student.unknown_id is not None
    assert unpack_pairing(pack_pairing(pairing)).student.unknown_id == pairing.student.unknown_id
