"""Readings of hand-made responses, worked out by hand, and what must hold for any two segmentations."""

# U = student's vocabulary, V = teacher's vocabulary

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor.wire import PositionStatus, SegmentationPolicy, VocabularyRelation
from preceptor_server.alignment.reader import Reader
from preceptor_server.alignment.reading import Conversion, Reading
from preceptor_server.alignment.segmenter import Segmentation
from preceptor_server.alignment.types import IMPOSSIBLE, NO_PLACE, Alignment, TokenTable
from preceptor_server.types import ResponseToScore

from tests.unit.server.alignment.alignments import alignment_of, table_of

OK, EXCLUDED = PositionStatus.OK, PositionStatus.EXCLUDED
SPECIAL, MISALIGNED, UNMAPPED = PositionStatus.SPECIAL, PositionStatus.MISALIGNED, PositionStatus.UNMAPPED
PLENTY = 1000


class LongestMatch:
    """Writes the longest token that fits, again and again; bytes that no token begins with are left out."""

    def __init__(self, table: TokenTable) -> None:
        self._ids = {table.bytes_of(token_id): token_id for token_id in reversed(range(table.size))}
        self._ids.pop(b"", None)

    def segment(self, texts: Sequence[bytes]) -> list[Segmentation]:
        return [self._segment_one(text) for text in texts]

    def _segment_one(self, text: bytes) -> Segmentation:
        ids, starts, ends, place = [], [], [], 0
        while place < len(text):
            fits = [token for token in self._ids if text.startswith(token, place)]
            if fits:
                longest = max(fits, key=len)
                ids.append(self._ids[longest])
                starts.append(place)
                ends.append(place + len(longest))
            place += max(map(len, fits), default=1)
        return Segmentation(
            ids_M=np.array(ids, np.int64),
            starts_M=np.array(starts, np.int64),
            ends_M=np.array(ends, np.int64),
            is_known_M=np.ones(len(ids), np.bool_),
        )


def first_tokens(teacher: TokenTable, student: TokenTable, *, before: bytes = b"", without: bytes = b"") -> np.ndarray:
    """A projection map by longest match."""
    places = np.full(teacher.size, NO_PLACE)
    segmenter = LongestMatch(student)
    for token_id in range(teacher.size):
        token = teacher.bytes_of(token_id)
        if not token or not token.startswith(without):
            places[token_id] = IMPOSSIBLE if without else NO_PLACE
            continue
        ids = segmenter.segment([before + token.removeprefix(without)])[0].ids_M
        places[token_id] = ids[0] if len(ids) else NO_PLACE
    return places


def strangers(
    student: TokenTable,
    teacher: TokenTable,
    *,
    special_to_teacher: dict[int, int] | None = None,
    student_end_ids: tuple[int, ...] = (),
) -> Alignment:
    places = first_tokens(teacher, student)
    for own, theirs in (special_to_teacher or {}).items():
        places[theirs] = own
    return alignment_of(
        relation=VocabularyRelation.OVERLAPPING,
        student=student,
        projection_V=places,
        with_space_V=first_tokens(teacher, student, before=b" "),
        without_space_V=first_tokens(teacher, student, without=b" "),
        special_to_teacher=special_to_teacher,
        student_end_ids=student_end_ids,
    )


def read(
    alignment: Alignment,
    teacher: TokenTable,
    ids: Sequence[int],
    *,
    policy: SegmentationPolicy = SegmentationPolicy.CANONICAL,
    mask: Sequence[int] | None = None,
    room: int = PLENTY,
    paper_token_ids: Sequence[int] = (),
) -> Reading:
    mask_T = np.ones(len(ids), np.bool_) if mask is None else np.array(mask, np.bool_)
    response = ResponseToScore(ids_T=np.array(ids, np.int64), score_mask_T=mask_T)
    reader = Reader(LongestMatch(teacher))
    return reader.read([response], alignment, policy=policy, room=room, paper_token_ids=paper_token_ids)[0]


def paths(reading: Reading) -> list[tuple[int, int, int]]:
    """(position, first teacher token, end of the path) of every position with a score."""
    columns = (reading.positions_N, reading.rows_N, reading.path_ends_N)
    return [(int(a), int(b), int(c)) for a, b, c in zip(*columns, strict=True)]


def test_a_token_that_the_teacher_cuts_in_three_takes_its_path_over_all_three() -> None:
    student, teacher = table_of([b"unbelievable", b"!"]), table_of([b"un", b"believ", b"able", b"!"])
    reading = read(strangers(student, teacher), teacher, [0, 1])
    assert reading.teacher_ids_M.tolist() == [0, 1, 2, 3]
    assert paths(reading) == [(0, 0, 3), (1, 3, 4)]
    assert reading.wanted_M.all()


def test_only_the_first_of_three_tokens_that_the_teacher_writes_as_one_is_scored() -> None:
    student, teacher = table_of([b"un", b"believ", b"able", b"!"]), table_of([b"unbelievable", b"!"])
    reading = read(strangers(student, teacher), teacher, [0, 1, 2, 3])
    assert reading.status_T.tolist() == [OK, MISALIGNED, MISALIGNED, OK]
    assert paths(reading) == [(0, 0, 1), (3, 1, 2)]


def test_a_space_that_the_teacher_wrote_one_token_earlier_is_put_back() -> None:
    student = table_of([b"\n   ", b" self", b".", b"\n", b"    "])
    teacher = table_of([b"\n", b"    ", b"self", b"."])
    reading = read(strangers(student, teacher), teacher, [0, 1, 2])
    assert reading.teacher_ids_M.tolist() == [0, 1, 2, 3]
    assert reading.status_T.tolist() == [OK, OK, OK]
    # The first token ends inside the teacher's indent, and its path leads over that.
    assert paths(reading) == [(0, 0, 2), (1, 2, 3), (2, 3, 4)]
    assert reading.conversions_N.tolist() == [Conversion.PLAIN, Conversion.WITH_SPACE, Conversion.PLAIN]


def test_a_space_that_the_student_wrote_one_token_earlier_is_taken_off() -> None:
    student = table_of([b"x", b" ", b"self", b"."])
    teacher = table_of([b"x", b" self", b"."])
    reading = read(strangers(student, teacher), teacher, [0, 1, 2, 3])
    assert reading.status_T.tolist() == [OK, OK, OK, OK]
    assert paths(reading) == [(0, 0, 1), (1, 1, 2), (2, 1, 2), (3, 2, 3)]
    assert reading.conversions_N.tolist() == [
        Conversion.PLAIN,
        Conversion.PLAIN,
        Conversion.WITHOUT_SPACE,
        Conversion.PLAIN,
    ]


def test_special_tokens_pass_through_their_counterparts_and_lonely_ones_are_left_out() -> None:
    student = table_of([b"a", b"b", b"", b""], specials={2: "<|user|>", 3: "<|tool|>"})
    teacher = table_of([b"ab", b"a", b"b", b""], specials={3: "<user>"})
    alignment = strangers(student, teacher, special_to_teacher={2: 3})
    reading = read(alignment, teacher, [0, 2, 1, 3, 0, 1])
    assert reading.teacher_ids_M.tolist() == [1, 3, 2, 0]
    assert reading.status_T.tolist() == [OK, OK, OK, SPECIAL, OK, MISALIGNED]
    assert paths(reading) == [(0, 0, 1), (1, 1, 2), (2, 2, 3), (4, 3, 4)]


def test_padding_and_bytes_that_the_teacher_cannot_write_are_unmapped() -> None:
    student = table_of([b"a", b"\xff", b"", b"\xffa"])
    teacher = table_of([b"a", b"aa"])
    reading = read(strangers(student, teacher), teacher, [0, 1, 0, 2, 3, 0])
    assert reading.teacher_ids_M.tolist() == [0, 0, 1]
    assert reading.status_T.tolist() == [OK, UNMAPPED, OK, UNMAPPED, UNMAPPED, MISALIGNED]


def test_an_end_token_that_is_text_stands_alone() -> None:
    student, teacher = table_of([b"a", b"b"]), table_of([b"ab", b"a", b"b", b""], specials={3: "<eos>"})
    alignment = strangers(student, teacher, special_to_teacher={1: 3}, student_end_ids=(1,))
    reading = read(alignment, teacher, [0, 1])
    assert reading.teacher_ids_M.tolist() == [1, 3]
    assert paths(reading) == [(0, 0, 1), (1, 1, 2)]


def test_text_is_cut_where_the_environment_stops_and_the_student_starts() -> None:
    student, teacher = table_of([b"a", b"b"]), table_of([b"ab", b"a", b"b"])
    reading = read(strangers(student, teacher), teacher, [0, 1, 0, 1], mask=[0, 1, 1, 0])
    assert reading.teacher_ids_M.tolist() == [1, 2, 1, 2]
    assert reading.status_T.tolist() == [EXCLUDED, OK, OK, EXCLUDED]
    assert reading.wanted_M.tolist() == [False, True, True, False]


def test_what_lies_beyond_the_context_is_cut_off_and_said() -> None:
    student, teacher = table_of([b"ab", b"c"]), table_of([b"a", b"b", b"c"])
    reading = read(strangers(student, teacher), teacher, [1, 0, 1], room=2)
    assert reading.teacher_ids_M.tolist() == [2, 0]
    beyond = PositionStatus.BEYOND_CONTEXT
    assert reading.status_T.tolist() == [OK, beyond, beyond]
    assert len(reading.wanted_M) == 2


THINK = [b"<", b"think", b">", b"<th", b"ink"]


def own(table: TokenTable) -> Alignment:
    ids = np.arange(table.size)
    return alignment_of(
        relation=VocabularyRelation.IDENTICAL, student=table, projection_V=ids, teacher_of_student_U=ids
    )


def test_mask_marks_the_tokens_that_the_teacher_would_have_cut_otherwise() -> None:
    table = table_of(THINK)
    reading = read(own(table), table, [0, 1, 2, 3, 4, 2], policy=SegmentationPolicy.MASK)
    assert reading.teacher_ids_M.tolist() == [0, 1, 2, 3, 4, 2]
    assert reading.status_T.tolist() == [MISALIGNED, MISALIGNED, OK, OK, OK, OK]
    # Asked at all of them, so that the engine's work does not depend on the policy.
    assert reading.wanted_M.all()
    assert paths(reading) == [(2, 2, 3), (3, 3, 4), (4, 4, 5), (5, 5, 6)]


def test_canonical_feeds_the_teachers_own_cut() -> None:
    table = table_of(THINK)
    reading = read(own(table), table, [0, 1, 2], policy=SegmentationPolicy.CANONICAL)
    assert reading.teacher_ids_M.tolist() == [3, 4, 2]
    assert reading.status_T.tolist() == [OK, MISALIGNED, OK]
    assert paths(reading) == [(0, 0, 1), (2, 2, 3)]


def test_as_is_scores_everything_and_paper_masks_first_occurrences() -> None:
    table = table_of(THINK)
    ids = [0, 1, 2, 0, 1, 2]
    assert read(own(table), table, ids, policy=SegmentationPolicy.AS_IS).status_T.tolist() == [OK] * 6
    paper = read(own(table), table, ids, policy=SegmentationPolicy.PAPER, paper_token_ids=[0, 2, 4])
    assert paper.status_T.tolist() == [SPECIAL, OK, SPECIAL, OK, OK, OK]
    assert paths(paper) == [(1, 1, 2), (3, 3, 4), (4, 4, 5), (5, 5, 6)]


def test_permuted_ids_are_fed_in_their_counterparts_and_padding_is_left_out() -> None:
    table = table_of([b"a", b"b", b"c", b""])
    alignment = alignment_of(
        relation=VocabularyRelation.PERMUTED,
        student=table,
        projection_V=np.array([2, 0, 1]),
        teacher_of_student_U=np.array([1, 2, 0, NO_PLACE]),
    )
    reading = read(alignment, table, [0, 3, 2], policy=SegmentationPolicy.AS_IS)
    assert reading.teacher_ids_M.tolist() == [1, 0]
    assert reading.status_T.tolist() == [OK, UNMAPPED, OK]
    assert paths(reading) == [(0, 0, 1), (2, 1, 2)]


ALPHABET = b"ab "
PIECES = [bytes([x]) for x in ALPHABET] + [bytes([x, y]) for x in ALPHABET for y in ALPHABET]
vocabularies = st.lists(
    st.sampled_from([*PIECES, b"abab", b" ab", b"  a", b"ba b"]), min_size=1, max_size=14, unique=True
)


@settings(max_examples=400, deadline=None)
@given(st.data(), vocabularies, vocabularies, st.booleans())
def test_no_position_moves_and_every_position_has_one_status(
    data: st.DataObject, ours: list[bytes], theirs: list[bytes], has_special: bool
) -> None:
    """For any two vocabularies and any response: every scored row stands at the byte at which its position does."""
    student = table_of([*ours, b""], specials={len(ours): "<s>"} if has_special else {})
    teacher = table_of([*theirs, b""], specials={len(theirs): "<s>"})
    alignment = strangers(student, teacher, special_to_teacher={len(ours): len(theirs)} if has_special else {})
    ids = data.draw(st.lists(st.integers(0, student.size - 1), min_size=1, max_size=12))
    mask = data.draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids)))

    reading = read(alignment, teacher, ids, mask=mask)

    text = b"".join(student.bytes_of(i) for i in ids)
    starts = np.cumsum([0] + [len(student.bytes_of(i)) for i in ids])
    written = [teacher.bytes_of(int(i)) for i in reading.teacher_ids_M]
    if b"".join(written) == text:  # nothing was left out: then offsets are sums of lengths
        offsets = np.cumsum([0, *map(len, written)])
        for (position, row, path_end), conversion in zip(paths(reading), reading.conversions_N, strict=True):
            shift = {Conversion.PLAIN: 0, Conversion.WITH_SPACE: 1, Conversion.WITHOUT_SPACE: -1}[conversion]
            assert offsets[row] == starts[position] + shift
            assert reading.wanted_M[row:path_end].all()
            lands = len(student.bytes_of(ids[position])) <= len(written[row]) + max(shift, 0)
            assert offsets[path_end] >= starts[position + 1] or lands
    asked = np.array(mask, np.bool_)
    assert ((reading.status_T == EXCLUDED) == ~asked).all()
    assert len(reading.status_T) == len(ids)
    assert (reading.rows_N[1:] >= reading.rows_N[:-1]).all()
    assert reading.sampled_ids_N.tolist() == [ids[position] for position in reading.positions_N]


@pytest.mark.parametrize("policy", [SegmentationPolicy.MASK, SegmentationPolicy.CANONICAL, SegmentationPolicy.AS_IS])
def test_a_response_that_the_teacher_would_write_so_is_read_unchanged(policy: SegmentationPolicy) -> None:
    table = table_of(THINK)
    reading = read(own(table), table, [3, 4, 2], policy=policy)
    assert reading.teacher_ids_M.tolist() == [3, 4, 2]
    assert paths(reading) == [(0, 0, 1), (1, 1, 2), (2, 2, 3)]
    assert reading.wanted_M.all()
