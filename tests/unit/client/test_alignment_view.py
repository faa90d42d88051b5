"""What the doctor makes of a report on two tokenizers, and what it advises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from preceptor.wire import VocabularyRelation
from preceptor_client.commands import alignment_view
from preceptor_client.commands.checks import Check, Outcome
from preceptor_client.types import AlignmentReport, PairedTokens, SpecialToken

EOS, END = SpecialToken(id=1, text="<eos>"), SpecialToken(id=3, text="<end>")
REPORT = AlignmentReport(
    relation=VocabularyRelation.IDENTICAL,
    is_one_to_one=True,
    mapped_share=1.0,
    projected_share=0.9876,
    differences=(),
    paired=(PairedTokens(student=EOS, teacher=END, reason="end of response"),),
    masked=(),
    dropped=(),
    student_end_tokens=(EOS,),
    teacher_end_tokens=(END,),
    warnings=(),
)
UNPAIRED = replace(REPORT, paired=())


def checks_of(report: AlignmentReport) -> dict[str, Check]:
    return {check.name: check for check in alignment_view.check_alignment(report)}


@pytest.mark.parametrize(
    ("relation", "is_one_to_one", "outcome", "policy"),
    [
        (VocabularyRelation.IDENTICAL, True, Outcome.OK, ""),
        (VocabularyRelation.PADDED, True, Outcome.OK, ""),
        (VocabularyRelation.PERMUTED, True, Outcome.WARN, "mask"),
        (VocabularyRelation.OVERLAPPING, False, Outcome.WARN, "canonical"),
        (VocabularyRelation.DISJOINT, False, Outcome.WARN, "canonical"),
    ],
)
def test_relation_decides_what_has_to_be_set(
    relation: VocabularyRelation, is_one_to_one: bool, outcome: Outcome, policy: str
) -> None:
    check = checks_of(replace(REPORT, relation=relation, is_one_to_one=is_one_to_one))["tokenizer"]
    assert check.outcome is outcome
    assert ("accept_other_tokenizer = true" in check.change) is bool(policy)
    assert check.change.endswith(policy)
    assert check.found.startswith(alignment_view.RELATION_WORDS[relation])


def test_every_relation_has_words() -> None:
    assert set(alignment_view.RELATION_WORDS) == set(VocabularyRelation)


@pytest.mark.parametrize(("share", "outcome"), [(0.49, Outcome.FAIL), (0.5, Outcome.WARN)])
def test_disjoint_vocabularies_fail_below_half_a_projection(share: float, outcome: Outcome) -> None:
    report = replace(REPORT, relation=VocabularyRelation.DISJOINT, is_one_to_one=False, projected_share=share)
    assert checks_of(report)["tokenizer"].outcome is outcome


def test_warnings_shares_and_differences_are_told() -> None:
    report = replace(REPORT, warnings=("the merges differ",), differences=("merges", "chat_template"))
    check = checks_of(report)["tokenizer"]
    assert check.outcome is Outcome.WARN
    assert "100.0% of the student's tokens have a counterpart, 98.8% of the teacher's" in check.found
    assert check.found.endswith("they differ in: merges, chat_template\nwarning: the merges differ")


@pytest.mark.parametrize(
    ("report", "outcome", "option"),
    [
        (REPORT, Outcome.OK, ""),
        (replace(UNPAIRED, teacher_end_tokens=(replace(EOS, id=9),)), Outcome.OK, ""),
        (UNPAIRED, Outcome.FAIL, "--special-pairs"),
        (replace(UNPAIRED, student_end_tokens=()), Outcome.WARN, "--student-end-token-ids"),
        (replace(UNPAIRED, teacher_end_tokens=()), Outcome.WARN, "--teacher-end-token-ids"),
        (replace(UNPAIRED, student_end_tokens=(), is_one_to_one=False), Outcome.FAIL, "--student-end-token-ids"),
        (replace(UNPAIRED, student_end_tokens=(), teacher_end_tokens=()), Outcome.SKIPPED, ""),
        # A pair of other special tokens is no meeting of ends.
        (replace(REPORT, student_end_tokens=(replace(EOS, id=2, text="<stop>"),)), Outcome.FAIL, "--special-pairs"),
    ],
)
def test_ends_of_responses_must_meet(report: AlignmentReport, outcome: Outcome, option: str) -> None:
    check = checks_of(report)["end tokens"]
    assert check.outcome is outcome
    assert option in check.change
    assert alignment_view.end_tokens_meet(report) is (outcome is Outcome.OK)


def test_special_tokens_without_a_counterpart_are_named_up_to_twelve() -> None:
    dropped = tuple(SpecialToken(id=100 + index, text=f"[T{index}]") for index in range(14))
    found = checks_of(replace(REPORT, masked=(EOS,), dropped=dropped))["special tokens"].found
    lines = found.splitlines()
    assert lines[0] == "1 pair(s)"
    assert lines[1].startswith("not trained on")
    assert lines[1].endswith("<eos> (1)")
    assert lines[2].endswith("[T11] (111), ... (14 in all)")
    assert "[T12]" not in found


def test_report_for_programs_names_the_relation() -> None:
    plain = alignment_view.as_plain(replace(REPORT, masked=(END,)))
    assert (plain["relation"], plain["end_tokens_meet"], plain["projected_share"]) == ("identical", True, 0.9876)
    assert plain["masked"] == ({"id": 3, "text": "<end>"},)
