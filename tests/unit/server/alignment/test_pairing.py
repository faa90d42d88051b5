from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from preceptor.wire import VocabularyRelation
from preceptor_server.alignment.pairing import own_pairing, pair, read_teacher
from preceptor_server.alignment.tokenizer_parts import tokenizer_parts
from preceptor_server.alignment.types import IMPOSSIBLE, NO_PLACE, Pairing, TeacherVocabulary, TokenKind
from preceptor_server.errors import InvalidTokenizerError
from tokenizers import Tokenizer

from tests.unit.server.alignment.test_token_table import HOSTILE, UNSUPPORTED, changed
from tests.unit.server.alignment.tokenizers_for_tests import (
    FAMILIES,
    added,
    byte_level,
    gemma_like,
    permuted,
    small_bpe,
    unigram,
    with_extra_specials,
    with_nfc,
    with_parts,
)

SPACE = "\u0120"
"""How a byte-level vocabulary writes it."""
TEMPLATE = "{{ messages }}"


@cache
def teacher(tokenizer_json: str, vocabulary_size: int = 0) -> TeacherVocabulary:
    return read_teacher(tokenizer_json, TEMPLATE, vocabulary_size=vocabulary_size)


@cache
def paired(student_json: str, teacher_json: str, vocabulary_size: int = 0) -> Pairing:
    return pair(student_json, chat_template=TEMPLATE, vocabulary_size=vocabulary_size, teacher=teacher(teacher_json))


def vocabulary(tokenizer_json: str) -> dict[str, int]:
    return Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)


# The maps, against an independent BPE.

LETTERS = "abc "
TEACHER_TEXTS = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product(LETTERS, repeat=n)]
MERGES = [(" ", "x"), ("a", "b"), (" ", "a"), ("ab", "c"), (" ", "b"), ("c", " "), ("a", "a"), ("b", " "), (" ", " ")]
STUDENT_TEXTS = [*LETTERS, "x", *(left + right for left, right in MERGES)]


def written(text: str) -> str:
    return text.replace(" ", SPACE)


def naive_bpe(text: str) -> list[str]:
    """Joins the leftmost pair of the earliest merge until none is left."""
    pieces = list(text)
    while True:
        ranked = [(MERGES.index(p), i) for i, p in enumerate(itertools.pairwise(pieces)) if p in MERGES]
        if not ranked:
            return pieces
        _, i = min(ranked)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def naive_first(text: str) -> int:
    """A space at the end is followed by something; where that makes a token reach beyond the text, it is not."""
    if text.endswith(" ") and len(text) > 1:
        first = naive_bpe(text + "x")[0]
        if text.startswith(first):
            return STUDENT_TEXTS.index(first)
    return STUDENT_TEXTS.index(naive_bpe(text)[0])


@pytest.fixture(scope="module")
def tiny_pairing() -> Pairing:
    merges = [(written(left), written(right)) for left, right in MERGES]
    student = small_bpe({written(text): i for i, text in enumerate(STUDENT_TEXTS)}, merges)
    teacher_json = small_bpe({written(text): i for i, text in enumerate(TEACHER_TEXTS)}, [])
    return paired(student, teacher_json)


def test_a_teachers_token_projects_to_the_first_token_that_bpe_cuts_it_into(tiny_pairing: Pairing) -> None:
    assert tiny_pairing.projection_V.tolist() == [naive_first(text) for text in TEACHER_TEXTS]


def test_the_map_with_a_space_is_that_of_the_token_behind_a_space(tiny_pairing: Pairing) -> None:
    expected = [NO_PLACE if text.startswith(" ") else naive_first(" " + text) for text in TEACHER_TEXTS]
    assert tiny_pairing.with_space_V.tolist() == expected


def test_the_map_without_a_space_is_that_of_what_follows_it(tiny_pairing: Pairing) -> None:
    """Of a space alone nothing is left; what begins with no space cannot stand behind one that is written."""
    rests = [text[1:] if text.startswith(" ") else None for text in TEACHER_TEXTS]
    expected = [IMPOSSIBLE if rest is None else naive_first(rest) if rest else NO_PLACE for rest in rests]
    assert tiny_pairing.without_space_V.tolist() == expected


def test_a_students_token_maps_to_the_teachers_of_the_same_bytes(tiny_pairing: Pairing) -> None:
    expected = [TEACHER_TEXTS.index(text) if text in TEACHER_TEXTS else NO_PLACE for text in STUDENT_TEXTS]
    assert tiny_pairing.teacher_of_student_U.tolist() == expected
    assert tiny_pairing.relation is VocabularyRelation.OVERLAPPING


def test_maps_agree_with_the_students_own_library_on_whole_words() -> None:
    pairing, teacher_table = paired(byte_level(), gemma_like()), teacher(gemma_like()).table
    library = Tokenizer.from_str(byte_level())
    num_compared = 0
    for token_id in np.flatnonzero(teacher_table.kinds_V == TokenKind.TEXT).tolist():
        token = teacher_table.bytes_of(token_id)
        if not token.isascii() or token[-1:].isspace():
            continue
        text = token.decode()
        assert pairing.projection_V[token_id] == library.encode(text).ids[0]
        if not text.startswith(" "):
            assert pairing.with_space_V[token_id] == library.encode(" " + text).ids[0]
        elif len(text) > 1:
            assert pairing.without_space_V[token_id] == library.encode(text[1:]).ids[0]
        num_compared += 1
    assert num_compared > 100


def test_white_space_projects_to_what_stands_before_a_word() -> None:
    # GPT-2's pattern leaves the last of several spaces to the word that follows.
    ids = vocabulary(byte_level())
    projection_V = paired(byte_level(), with_extra_specials()).projection_V
    assert projection_V[ids[SPACE * 2]] == ids[SPACE]


# Pieces of characters, and special tokens.

PIECE = SPACE + "\u00f0\u0141"
"""A space and the first two bytes of an emoji, in the byte alphabet."""


def test_a_piece_of_a_character_projects_to_the_students_token_of_these_bytes() -> None:
    student_id = vocabulary(byte_level())[PIECE]
    assert paired(byte_level(), with_nfc()).projection_V[vocabulary(with_nfc())[PIECE]] == student_id


def test_a_piece_of_a_character_projects_to_what_can_be_cut_of_it() -> None:
    ids, projection_V = vocabulary(gemma_like()), paired(gemma_like(), byte_level()).projection_V
    assert projection_V[vocabulary(byte_level())[PIECE]] == ids["\u2581"]
    assert projection_V[vocabulary(byte_level())["\u00f0"]] == ids["<0xF0>"]


def test_what_the_student_cannot_write_has_no_place() -> None:
    projection_V = paired(unigram(), byte_level()).projection_V
    assert projection_V[vocabulary(byte_level())["\u00ff"]] == NO_PLACE
    assert projection_V[vocabulary(byte_level())["the"]] == vocabulary(unigram())["the"]


def test_special_tokens_go_by_their_text() -> None:
    pairing = paired(with_extra_specials(), byte_level())
    ids, teacher_ids = vocabulary(with_extra_specials()), vocabulary(byte_level())
    assert pairing.projection_V[teacher_ids["<|end|>"]] == ids["<|end|>"]
    assert pairing.teacher_of_student_U[ids["<|end|>"]] == teacher_ids["<|end|>"]
    assert pairing.teacher_of_student_U[ids["<|extra|>"]] == NO_PLACE


# How vocabularies relate.


def test_the_same_tokenizer_is_identical_and_nothing_is_to_be_warned_of() -> None:
    pairing = paired(byte_level(), byte_level())
    assert (pairing.relation, pairing.differences, pairing.warnings) == (VocabularyRelation.IDENTICAL, (), ())
    assert (
        pairing.projection_V.tolist()
        == pairing.teacher_of_student_U.tolist()
        == list(range(len(vocabulary(byte_level()))))
    )
    assert len(pairing.with_space_V) == len(pairing.without_space_V) == 0


@pytest.mark.parametrize("more", [True, False])
def test_another_number_of_logits_is_padded(more: bool) -> None:
    size = len(vocabulary(byte_level()))
    teacher_of = teacher(byte_level(), 0 if more else size + 9)
    pairing = pair(byte_level(), chat_template=None, vocabulary_size=size + 9 if more else 0, teacher=teacher_of)
    small, large = list(range(size)), [*range(size), *[NO_PLACE] * 9]
    assert pairing.relation is VocabularyRelation.PADDED
    assert pairing.teacher_of_student_U.tolist() == (large if more else small)
    assert pairing.projection_V.tolist() == (small if more else large)


@pytest.mark.parametrize("family", ["byte_level", "gemma_like", "with_nfc"])
def test_the_same_tokens_under_other_ids_are_permuted(family: str) -> None:
    tokenizer_json = FAMILIES[family]()
    other = permuted(tokenizer_json)
    pairing, ids, teacher_ids = paired(other, tokenizer_json), vocabulary(other), vocabulary(tokenizer_json)
    assert pairing.relation is VocabularyRelation.PERMUTED
    # By their strings, which tell `<0x41>` from `A` although both stand for the same byte.
    expected = {ids[token]: teacher_ids[token] for token in ids}
    assert dict(enumerate(pairing.teacher_of_student_U.tolist())) == expected
    assert {s: t for t, s in enumerate(pairing.projection_V.tolist())} == expected
    assert len(pairing.with_space_V) == len(pairing.without_space_V) == 0


def test_a_vocabulary_that_extends_another_overlaps_and_the_report_names_what_is_new() -> None:
    pairing = paired(with_extra_specials(), byte_level())
    assert pairing.relation is VocabularyRelation.OVERLAPPING
    assert "1 text tokens of the student are not tokens of the teacher: '<think>'" in pairing.warnings
    pairing = paired(byte_level(), with_extra_specials())
    assert "1 text tokens of the teacher are not tokens of the student: '<think>'" in pairing.warnings


def test_vocabularies_without_a_common_text_are_disjoint() -> None:
    one, other = small_bpe({"a": 0, "b": 1}, []), small_bpe({"c": 0, "d": 1}, [])
    pairing = paired(one, other)
    assert pairing.relation is VocabularyRelation.DISJOINT
    assert pairing.projection_V.tolist() == pairing.teacher_of_student_U.tolist() == [NO_PLACE, NO_PLACE]
    assert any(warning.startswith("only 0% of the student's vocabulary") for warning in pairing.warnings)


def test_a_special_token_is_not_the_text_that_it_is_named_by() -> None:
    def with_end(*, special: bool) -> str:
        parts = json.loads(small_bpe({"a": 0}, []))
        return json.dumps(parts | {"added_tokens": [added(1, "<e>", special=special)]})

    pairing = paired(with_end(special=True), with_end(special=False))
    assert pairing.relation is VocabularyRelation.OVERLAPPING
    assert pairing.teacher_of_student_U.tolist() == [0, NO_PLACE]


# A student with the teacher's own tokenizer.


def test_the_teachers_own_tokenizer_needs_no_file() -> None:
    own = own_pairing(teacher(byte_level()), vocabulary_size=0)
    read = paired(byte_level(), byte_level())
    assert own.relation is read.relation is VocabularyRelation.IDENTICAL
    assert own.projection_V.tolist() == read.projection_V.tolist()
    assert own.teacher_of_student_U.tolist() == read.teacher_of_student_U.tolist()


def test_the_teachers_own_tokenizer_with_other_logits_is_padded_as_if_it_were_read() -> None:
    own, read = own_pairing(teacher(byte_level()), vocabulary_size=500), paired(byte_level(), byte_level(), 500)
    assert own.relation is read.relation is VocabularyRelation.PADDED
    assert own.projection_V.tolist() == read.projection_V.tolist()
    assert own.teacher_of_student_U.tolist() == read.teacher_of_student_U.tolist()
    assert own.student.kinds_V.tolist() == read.student.kinds_V.tolist()


def test_fewer_logits_than_tokens_of_text_are_refused() -> None:
    with pytest.raises(InvalidTokenizerError, match="beyond its size"):
        own_pairing(teacher(byte_level()), vocabulary_size=300)


# What differs, and what is said of it.


def differences(student_json: str, *, chat_template: str | None = TEMPLATE) -> Sequence[str]:
    pairing = pair(student_json, chat_template=chat_template, vocabulary_size=0, teacher=teacher(byte_level()))
    assert pairing.relation is VocabularyRelation.IDENTICAL
    assert len(pairing.warnings) >= len(pairing.differences)
    return pairing.differences


def test_each_part_that_differs_is_named() -> None:
    parts = json.loads(byte_level())
    merges = parts["model"] | {"merges": parts["model"]["merges"][::-1]}
    token = parts["added_tokens"][0] | {"lstrip": True}
    no_pattern = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    assert differences(with_parts(byte_level(), model=merges)) == ("merges",)
    assert differences(with_parts(byte_level(), normalizer={"type": "NFC"})) == ("normalizer",)
    assert differences(with_parts(byte_level(), pre_tokenizer=no_pattern)) == ("pre_tokenizer",)
    assert differences(with_parts(byte_level(), added_tokens=[token])) == ("added_tokens",)
    assert differences(byte_level(), chat_template="{{ other }}") == ("chat_template",)


def test_two_ways_to_write_the_same_part_do_not_differ() -> None:
    parts = json.loads(byte_level())
    as_text = parts["model"] | {"merges": [" ".join(merge) for merge in parts["model"]["merges"]]}
    trimmed = parts["pre_tokenizer"] | {"trim_offsets": not parts["pre_tokenizer"]["trim_offsets"]}
    other = with_parts(byte_level(), model=as_text, pre_tokenizer=trimmed)
    assert json.loads(other) != parts
    assert tokenizer_parts(other, TEMPLATE) == tokenizer_parts(parts, TEMPLATE)


def test_a_normaliser_is_warned_of_by_name() -> None:
    warnings = paired(with_nfc(), byte_level()).warnings
    assert any("normalises text (NFC)" in warning for warning in warnings)


def test_missing_byte_tokens_are_warned_of() -> None:
    warnings = paired(unigram(), byte_level()).warnings
    assert any("no token for 211 of the 256 bytes" in warning for warning in warnings)


# Files of strangers.

REFUSED_BY_THE_LIBRARY = {
    "unknown merge": changed(merges=["a c"]),
    "merge of three": changed(merges=["a b c"]),
    "merge of nothing": changed(merges=[""]),
    "merge without its token": changed(vocab={"a": 0, "b": 1}),
    "merges are numbers": changed(merges=[1]),
    "merges are a number": changed(merges=7),
    "merges hold half a surrogate": changed(merges=["\ud800 a"]),
    "unknown model": changed(type="Unheard"),
    "normalizer is a list": with_parts(changed(), normalizer=[]),
    "normalizer of no type": with_parts(changed(), normalizer={}),
    "pattern that is none": with_parts(
        changed(), pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "added token without flags": with_parts(changed(), added_tokens=[{"id": 3, "content": "x"}]),
}


@pytest.mark.parametrize("name", [*HOSTILE, *UNSUPPORTED, *REFUSED_BY_THE_LIBRARY])
def test_a_student_that_cannot_be_read_is_refused(name: str) -> None:
    known = {name: text for name, (text, _) in (HOSTILE | UNSUPPORTED).items()}
    with pytest.raises(InvalidTokenizerError):
        paired((known | REFUSED_BY_THE_LIBRARY)[name], byte_level())
