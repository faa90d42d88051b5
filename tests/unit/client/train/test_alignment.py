from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from preceptor.wire import SegmentationPolicy, VocabularyRelation
from preceptor_client.errors import NotImplementedByServerError
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.student.student import Student, prepare_student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.alignment import align
from preceptor_client.train.teacher.config import TeacherConfig

from tests.tiny import tiny_tokenizer
from tests.unit.client.train.fake_scorer import REPORT, FakeScorer, teacher_info
from tests.unit.client.train.tiny import tiny_model

OVERLAPPING = replace(
    REPORT,
    relation=VocabularyRelation.OVERLAPPING,
    is_one_to_one=False,
    mapped_share=0.875,
    warnings=("no end token is shared", "spaces are cut otherwise"),
)


def _align(scorer: FakeScorer, student: Student, **settings: Any) -> Agreement:  # Any: whatever a setting holds
    config = TeacherConfig(address="a:1", **settings)
    return align(scorer, teacher=teacher_info(scorer.teacher), config=config, student=student)


def test_tokenizer_is_handed_over_with_all_that_aligns_it(scorer: FakeScorer) -> None:
    student = prepare_student(tiny_model(seed=0), tiny_tokenizer(), end_token_ids=(10, 2))
    agreement = _align(scorer, student, end_token_ids=(7,), special_pairs={"<|im_end|>": "<eos>"})
    (sent,) = scorer.registrations
    assert len(json.loads(str(sent.pop("tokenizer_json")))["model"]["vocab"]) == 259
    assert sent == {
        "chat_template": student.tokenizer.chat_template,
        "teacher": "tiny",
        "end_token_ids": (10, 2),
        "teacher_end_token_ids": (7,),
        "special_pairs": {"<|im_end|>": "<eos>"},
        "vocabulary_size": 259,
    }
    assert agreement.registration.tokenizer_id == "registered"


@pytest.mark.parametrize("relation", [VocabularyRelation.IDENTICAL, VocabularyRelation.PADDED])
def test_equal_ids_need_no_consent(relation: VocabularyRelation, student: Student, scorer: FakeScorer) -> None:
    scorer.report = replace(REPORT, relation=relation)
    assert _align(scorer, student).policy is SegmentationPolicy.MASK


def test_other_vocabulary_is_refused_until_it_is_accepted(student: Student, scorer: FakeScorer) -> None:
    scorer.report = OVERLAPPING
    expected = (
        r"overlapping: 87\.5% of the student's tokens have a counterpart \(no end token is shared; spaces are cut "
        r"otherwise\)\. Set teacher\.accept_other_tokenizer=true"
    )
    with pytest.raises(UnsuitableTeacherError, match=expected):
        _align(scorer, student)
    agreement = _align(scorer, student, accept_other_tokenizer=True)
    assert agreement.policy is SegmentationPolicy.CANONICAL
    assert agreement.warnings == OVERLAPPING.warnings


def test_permuted_vocabulary_is_masked_once_it_is_accepted(student: Student, scorer: FakeScorer) -> None:
    scorer.report = replace(REPORT, relation=VocabularyRelation.PERMUTED)
    with pytest.raises(UnsuitableTeacherError, match=r"permuted: 100\.0%"):
        _align(scorer, student)
    assert _align(scorer, student, accept_other_tokenizer=True).policy is SegmentationPolicy.MASK


@pytest.mark.parametrize("segmentation", ["as_is", "mask", "paper"])
def test_policy_that_needs_equal_ids_is_refused_without_them(
    segmentation: str, student: Student, scorer: FakeScorer
) -> None:
    scorer.report = OVERLAPPING
    with pytest.raises(UnsuitableTeacherError, match=r"set teacher\.segmentation=auto or canonical"):
        _align(scorer, student, segmentation=segmentation, accept_other_tokenizer=True)


@pytest.mark.parametrize(
    ("segmentation", "policy"),
    [
        ("as_is", SegmentationPolicy.AS_IS),
        ("mask", SegmentationPolicy.MASK),
        ("canonical", SegmentationPolicy.CANONICAL),
        ("paper", SegmentationPolicy.PAPER),
    ],
)
def test_policy_of_the_settings_is_taken(
    segmentation: str, policy: SegmentationPolicy, student: Student, scorer: FakeScorer
) -> None:
    assert _align(scorer, student, segmentation=segmentation).policy is policy


def test_paper_lists_every_token_of_its_texts_once(student: Student, scorer: FakeScorer) -> None:
    texts = ["<", "think", "<|im_end|>"]
    ids = [student.tokenizer.convert_tokens_to_ids(token) for token in ("<", *"think", "<|im_end|>")]
    assert _align(scorer, student, segmentation="paper").paper_token_ids == tuple(ids)
    assert _align(scorer, student, segmentation="paper", paper_tokens=[*texts, "kt"]).paper_token_ids == tuple(ids)
    assert _align(scorer, student).paper_token_ids == ()


def test_server_that_cannot_align_is_refused_with_both_ids(student: Student, scorer: FakeScorer) -> None:
    scorer.register_error = NotImplementedByServerError("other tokenizers are not implemented")
    ours = student.tokenizer_id
    with pytest.raises(UnsuitableTeacherError, match=rf"{ours}.*'tiny'.*not implemented.*shares the"):
        _align(scorer, student, accept_other_tokenizer=True)


def test_server_that_aligns_nothing_scores_its_own_tokenizer_as_it_is(student: Student, scorer: FakeScorer) -> None:
    info = teacher_info(scorer.teacher)
    teacher = replace(
        info,
        tokenizer_id=student.tokenizer_id,
        capabilities=replace(info.capabilities, other_tokenizers=False),
    )
    agreement = align(scorer, teacher=teacher, config=TeacherConfig(address="a:1"), student=student)
    assert agreement.policy is SegmentationPolicy.AS_IS
    assert agreement.registration.tokenizer_id == student.tokenizer_id
    assert "does not align" in agreement.warnings[0]
    assert not scorer.registrations
    asks_for_more = TeacherConfig(address="a:1", segmentation="mask")
    with pytest.raises(UnsuitableTeacherError, match=r"set teacher\.segmentation=as_is"):
        align(scorer, teacher=teacher, config=asks_for_more, student=student)
