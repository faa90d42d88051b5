from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from preceptor.wire import VocabularyRelation
from preceptor_server.alignment.specials import align
from preceptor_server.alignment.types import (
    END,
    NO_PLACE,
    Alignment,
    Pairing,
    TeacherVocabulary,
    TokenKind,
    TokenTable,
)
from preceptor_server.errors import InvalidTokenizerError

EMPTY = np.zeros(0, np.int32)


def table(*tokens: str | None) -> TokenTable:
    """`<...>` is special, None is padding, anything else is text."""
    texts = [token.encode() if token and not token.startswith("<") else b"" for token in tokens]
    kinds = [
        TokenKind.ABSENT if token is None else TokenKind.SPECIAL if token.startswith("<") else TokenKind.TEXT
        for token in tokens
    ]
    return TokenTable(
        kinds_V=np.array(kinds, np.uint8),
        blob=b"".join(texts),
        offsets_V1=np.cumsum([0, *(len(text) for text in texts)]),
        special_texts={i: token for i, token in enumerate(tokens) if token and token.startswith("<")},
    )


def paired(
    student: Sequence[str | None],
    teacher: Sequence[str | None],
    relation: VocabularyRelation,
    *,
    projection: Mapping[str, str] | None = None,
    warnings: tuple[str, ...] = (),
) -> tuple[Pairing, TeacherVocabulary]:
    """Same text is same token; `projection` says where teacher tokens go besides."""
    to_teacher = [teacher.index(token) if token in teacher and token else NO_PLACE for token in student]
    goes = {token: token for token in teacher} | dict(projection or {})
    places = [student.index(goes[token]) if token and goes[token] in student else NO_PLACE for token in teacher]
    pairing = Pairing(
        student=table(*student),
        relation=relation,
        differences=(),
        teacher_of_student_U=np.array(to_teacher, np.int32),
        projection_V=np.array(places, np.int32),
        with_space_V=EMPTY,
        without_space_V=EMPTY,
        warnings=warnings,
    )
    return pairing, TeacherVocabulary(table=table(*teacher), parts={})


def aligned(
    sides: tuple[Pairing, TeacherVocabulary],
    *,
    ends: tuple[int, ...] = (),
    teacher_ends: tuple[int, ...] = (),
    pairs: Mapping[str, str] | None = None,
) -> Alignment:
    pairing, teacher = sides
    return align(
        pairing,
        teacher=teacher,
        tokenizer_id="student",
        end_token_ids=ends,
        teacher_end_ids=teacher_ends,
        special_pairs=pairs or {},
    )


def same() -> tuple[Pairing, TeacherVocabulary]:
    tokens = ("a", "b", "<end>", "<turn>")
    return paired(tokens, tokens, VocabularyRelation.IDENTICAL)


def permuted() -> tuple[Pairing, TeacherVocabulary]:
    return paired(("a", "b", "<end>", "<turn>"), ("<turn>", "<end>", "b", "a"), VocabularyRelation.PERMUTED)


def different() -> tuple[Pairing, TeacherVocabulary]:
    """Student: 0 a, 1 b, 2 <im_end>, 3 <im_start>, 4 <pad>. Teacher: 0 a, 1 ab, 2 <eos>, 3 <turn>, 4 <pad>, 5 <x>."""
    return paired(
        ("a", "b", "<im_end>", "<im_start>", "<pad>"),
        ("a", "ab", "<eos>", "<turn>", "<pad>", "<x>"),
        VocabularyRelation.OVERLAPPING,
        projection={"ab": "a"},
        warnings=("from the pairing",),
    )


def reasons(alignment: Alignment) -> dict[tuple[int, int], str]:
    return {(pair.student_id, pair.teacher_id): pair.reason for pair in alignment.paired}


def test_identical_tokenizers_with_one_end_token_keep_the_map_itself() -> None:
    sides = same()
    alignment = aligned(sides, ends=(2,), teacher_ends=(2,))
    assert alignment.projection_V is sides[0].projection_V
    assert not alignment.merges_end_tokens
    assert alignment.special_to_teacher == {2: 2, 3: 3}
    assert reasons(alignment) == {(2, 2): "same text", (3, 3): "same text"}
    assert alignment.warnings == ()
    assert (alignment.mapped_share, alignment.projected_share) == (1.0, 1.0)


def test_permuted_tokenizers_with_one_end_token_keep_the_map_itself() -> None:
    sides = permuted()
    alignment = aligned(sides, ends=(2,), teacher_ends=(1,))
    assert alignment.projection_V is sides[0].projection_V
    assert alignment.special_to_teacher == {2: 1, 3: 0}


def test_one_vocabulary_with_another_end_token_on_each_side_has_one_end() -> None:
    """The paper's case: the student ends with <turn>, the teacher with <end>."""
    alignment = aligned(same(), ends=(3,), teacher_ends=(2,))
    assert alignment.projection_V.tolist() == [0, 1, END, END]
    assert alignment.special_to_teacher == {2: 2, 3: 2}
    assert reasons(alignment) == {(2, 2): "same text", (3, 2): "end of response"}
    (warning,) = alignment.warnings
    assert warning == (
        "the student ends with <turn>, the teacher with <end>: the teacher's end mass is reported under <turn>"
    )


def test_an_end_token_more_on_one_side_only_makes_a_class() -> None:
    assert aligned(permuted(), ends=(2,), teacher_ends=(1, 0)).projection_V.tolist() == [END, END, 1, 0]
    assert aligned(permuted(), ends=(2, 3), teacher_ends=(1,)).projection_V.tolist() == [END, END, 1, 0]


def test_two_end_tokens_on_each_side_are_one_class_and_keep_their_own_counterparts() -> None:
    alignment = aligned(permuted(), ends=(3, 2), teacher_ends=(1, 0))
    assert alignment.projection_V.tolist() == [END, END, 1, 0]
    assert alignment.special_to_teacher == {2: 1, 3: 0}
    assert set(reasons(alignment).values()) == {"same text"}
    assert alignment.student_end_ids == (3, 2)
    assert alignment.teacher_end_ids == (1, 0)
    assert "or the one that the student wrote" in alignment.warnings[0]


def test_the_map_of_a_pairing_is_never_changed() -> None:
    sides = different()
    before = sides[0].projection_V.copy()
    aligned(sides, ends=(2,), teacher_ends=(2,), pairs={"<im_start>": "<turn>"})
    np.testing.assert_array_equal(sides[0].projection_V, before)


def test_different_vocabularies_meet_in_their_end_and_lose_the_rest() -> None:
    alignment = aligned(different(), ends=(2,), teacher_ends=(2,))
    assert alignment.projection_V.tolist() == [0, 0, END, NO_PLACE, 4, NO_PLACE]
    assert alignment.special_to_teacher == {2: 2, 4: 4}
    assert reasons(alignment) == {(2, 2): "end of response", (4, 4): "same text"}
    assert alignment.masked_ids == (3,)
    assert alignment.dropped_ids == (3, 5)
    assert alignment.mapped_share == pytest.approx(3 / 5)  # a, <im_end>, <pad>
    assert alignment.projected_share == pytest.approx(4 / 6)  # a, ab, <eos>, <pad>


def test_warnings_say_what_follows_and_what_to_change() -> None:
    pairing_says, ends, masked, dropped = aligned(different(), ends=(2,), teacher_ends=(2,)).warnings
    assert pairing_says == "from the pairing"
    assert ends == (
        "the student ends with <im_end>, the teacher with <eos>: the teacher's end mass is reported under <im_end>"
    )
    assert masked.startswith("1 special token of the student has no counterpart, e.g. <im_start>: ")
    assert dropped.startswith(
        "2 special tokens of the teacher have no place in the student's vocabulary, e.g. <turn>, <x>: "
    )
    assert "special_pairs" in masked
    assert "special_pairs" in dropped


def test_several_end_tokens_of_different_vocabularies_go_to_the_teachers_first() -> None:
    alignment = aligned(different(), ends=(2, 4), teacher_ends=(2, 3))
    # <pad> ends the student, so its counterpart ends the teacher too.
    assert alignment.projection_V.tolist() == [0, 0, END, END, END, NO_PLACE]
    assert alignment.special_to_teacher == {2: 2, 4: 2}
    assert reasons(alignment) == {(2, 2): "end of response", (4, 2): "end of response"}


def test_configured_pairs_are_put_in() -> None:
    alignment = aligned(different(), ends=(2,), teacher_ends=(2,), pairs={"<im_start>": "<turn>"})
    assert alignment.projection_V.tolist() == [0, 0, END, 3, 4, NO_PLACE]
    assert alignment.special_to_teacher == {2: 2, 3: 3, 4: 4}
    assert reasons(alignment)[3, 3] == "as configured"
    assert alignment.masked_ids == ()
    assert alignment.dropped_ids == (5,)
    assert alignment.mapped_share == pytest.approx(4 / 5)
    assert alignment.projected_share == pytest.approx(5 / 6)


def test_a_configured_pair_overrides_the_same_text() -> None:
    alignment = aligned(different(), ends=(2,), teacher_ends=(2,), pairs={"<pad>": "<x>"})
    assert alignment.projection_V.tolist() == [0, 0, END, NO_PLACE, NO_PLACE, 4]
    assert alignment.special_to_teacher == {2: 2, 4: 5}
    assert reasons(alignment)[4, 5] == "as configured"


def test_a_configured_pair_of_an_end_token_stands_and_joins_the_class() -> None:
    alignment = aligned(different(), ends=(2,), teacher_ends=(2,), pairs={"<im_end>": "<turn>"})
    assert alignment.projection_V.tolist() == [0, 0, END, END, 4, NO_PLACE]
    assert alignment.special_to_teacher == {2: 3, 4: 4}
    assert reasons(alignment)[2, 3] == "as configured"


def test_of_several_tokens_paired_with_one_the_first_gets_its_mass() -> None:
    alignment = aligned(different(), pairs={"<im_start>": "<turn>", "<pad>": "<turn>"})
    assert alignment.projection_V[3] == 3
    assert alignment.special_to_teacher == {3: 3, 4: 3}


def test_a_token_of_text_may_be_paired_and_that_is_warned_of() -> None:
    alignment = aligned(different(), ends=(2,), teacher_ends=(2,), pairs={"b": "<x>"})
    assert alignment.projection_V[5] == 1
    assert alignment.special_to_teacher[1] == 5
    assert any(warning.startswith("'b' is paired and is plain text") for warning in alignment.warnings)


def test_without_end_tokens_of_the_student_the_teachers_keep_the_ordinary_rules() -> None:
    sides = different()
    alignment = aligned(sides, teacher_ends=(2,))
    assert alignment.projection_V is sides[0].projection_V
    assert 2 in alignment.dropped_ids
    assert 2 in alignment.masked_ids
    assert any("Send end_token_ids" in warning for warning in alignment.warnings)


def test_without_end_tokens_of_the_teacher_the_students_own_counterparts_end_it() -> None:
    alignment = aligned(different(), ends=(4,))
    assert alignment.projection_V.tolist() == [0, 0, NO_PLACE, NO_PLACE, END, NO_PLACE]
    assert alignment.special_to_teacher == {4: 4}
    assert alignment.teacher_end_ids == ()
    assert any("Send teacher_end_token_ids" in warning for warning in alignment.warnings)


def test_a_token_of_text_may_end_the_students_responses() -> None:
    alignment = aligned(different(), ends=(1,), teacher_ends=(2,))
    assert alignment.special_to_teacher == {1: 2, 4: 4}
    assert alignment.projection_V[2] == END
    assert any(warning.startswith("'b' ends the student's responses and is plain") for warning in alignment.warnings)


def test_a_token_of_text_that_ends_both_sides_keeps_its_counterpart() -> None:
    alignment = aligned(different(), ends=(2, 0), teacher_ends=(2, 0))
    assert alignment.special_to_teacher == {0: 0, 2: 2, 4: 4}
    assert alignment.projection_V.tolist() == [END, 0, END, NO_PLACE, 4, NO_PLACE]


def test_end_tokens_named_twice_count_once() -> None:
    alignment = aligned(permuted(), ends=(2, 2), teacher_ends=(1, 1))
    assert alignment.student_end_ids == (2,)
    assert not alignment.merges_end_tokens


def test_padding_counts_in_no_share() -> None:
    sides = paired(("a", "<end>", None, None), ("a", "<end>", "b", None), VocabularyRelation.OVERLAPPING)
    alignment = aligned(sides, ends=(1,), teacher_ends=(1,))
    assert alignment.mapped_share == 1.0
    assert alignment.projected_share == pytest.approx(2 / 3)


def test_an_end_token_that_is_padding_is_warned_of() -> None:
    sides = paired(("a", "<end>", None), ("a", "<end>"), VocabularyRelation.PADDED)
    warnings = aligned(sides, ends=(1, 2), teacher_ends=(1,)).warnings
    assert "the student's end token 2 is padding of its vocabulary, which nothing is written with" in warnings


@pytest.mark.parametrize(
    ("pairs", "field", "names"),
    [
        ({"<none>": "<eos>"}, "special_pairs[0].student", ("'<none>'", "<im_end>, <im_start>, <pad>")),
        ({"<pad>": "<pad>", "<im_end>": "<none>"}, "special_pairs[1].teacher", ("'<none>'", "<eos>, <turn>")),
        ({"": "<eos>"}, "special_pairs[0].student", ("''",)),
    ],
)
def test_a_text_that_no_token_has_is_refused(pairs: Mapping[str, str], field: str, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidTokenizerError) as caught:
        aligned(different(), pairs=pairs)
    assert (caught.value.reason, caught.value.field) == ("UNKNOWN_SPECIAL_TOKEN", field)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("ends", "teacher_ends", "field"), [((5,), (2,), "end_token_ids"), ((2,), (2, 6), "teacher_end_token_ids")]
)
def test_an_end_token_outside_the_vocabulary_is_refused(
    ends: tuple[int, ...], teacher_ends: tuple[int, ...], field: str
) -> None:
    with pytest.raises(InvalidTokenizerError) as caught:
        aligned(different(), ends=ends, teacher_ends=teacher_ends)
    assert (caught.value.reason, caught.value.field) == ("TOKEN_OUT_OF_RANGE", field)
