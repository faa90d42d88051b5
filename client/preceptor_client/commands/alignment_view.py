"""Says for people, and for programs, what a report on two tokenizers means and what to set. Pure; prints nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from preceptor.wire import VocabularyRelation
from rich.table import Table
from rich.text import Text as Cell

from preceptor_client.commands.checks import Check, Outcome
from preceptor_client.types import AlignmentReport, SpecialToken

NUM_SHOWN = 12
"""Special tokens to list before the rest is a count."""
MIN_PROJECTED_SHARE = 0.5
"""Where no token is shared, less of the teacher's vocabulary than this with a place in the student's is too little to
learn from."""
RELATION_WORDS = {
    VocabularyRelation.IDENTICAL: "identical: the same ids stand for the same tokens",
    VocabularyRelation.PADDED: "identical but for padding: the same ids stand for the same tokens, one model has more "
    "unused ones",
    VocabularyRelation.PERMUTED: "permuted: the same tokens under other ids; the server translates them one to one",
    VocabularyRelation.OVERLAPPING: "overlapping: some tokens in common; the server scores its own tokens of the same "
    "text, and gives their mass to the student's tokens",
    VocabularyRelation.DISJOINT: "disjoint: no token in common",
}
_NEEDS_NO_CONSENT = (VocabularyRelation.IDENTICAL, VocabularyRelation.PADDED)


def check_alignment(report: AlignmentReport) -> list[Check]:
    """What the report says about the vocabularies, about how a response ends, and about the other special tokens."""
    return [_check_vocabularies(report), _check_end_tokens(report), _check_special_tokens(report)]


def _check_vocabularies(report: AlignmentReport) -> Check:
    lines = [
        RELATION_WORDS[report.relation],
        f"{report.mapped_share:.1%} of the student's tokens have a counterpart, {report.projected_share:.1%} of the "
        "teacher's have a place in the student's vocabulary",
    ]
    lines += [f"they differ in: {', '.join(report.differences)}"] if report.differences else []
    lines += [f"warning: {warning}" for warning in report.warnings]
    outcome, change = _judge_vocabularies(report)
    return Check(name="tokenizer", outcome=outcome, found="\n".join(lines), change=change)


def _judge_vocabularies(report: AlignmentReport) -> tuple[Outcome, str]:
    if report.relation is VocabularyRelation.DISJOINT and report.projected_share < MIN_PROJECTED_SHARE:
        return (
            Outcome.FAIL,
            "take a student and a teacher whose vocabularies share tokens: there is too little to learn",
        )
    if report.relation in _NEEDS_NO_CONSENT:
        is_fine = not report.warnings
        return (Outcome.OK, "") if is_fine else (Outcome.WARN, "nothing has to be set; see that the warnings are meant")
    policy = "mask" if report.is_one_to_one else "canonical"
    return Outcome.WARN, (
        "set teacher.accept_other_tokenizer = true in the trainer's settings; its teacher.segmentation = auto then "
        f"stands for {policy}"
    )


def _check_end_tokens(report: AlignmentReport) -> Check:
    ours, theirs = report.student_end_tokens, report.teacher_end_tokens
    found = f"student {named(ours)}; teacher {named(theirs)}"
    if end_tokens_meet(report):
        return Check(name="end tokens", outcome=Outcome.OK, found=found)
    if not (ours or theirs) and report.is_one_to_one:
        return Check(name="end tokens", outcome=Outcome.SKIPPED, found="the server compares none; the ids are the same")
    if not ours:
        change = "name what ends the student's responses: --student-end-token-ids"
    elif not theirs:
        change = "name what ends the teacher's responses: --teacher-end-token-ids"
    else:
        change = "pair what ends the student's responses with what ends the teacher's: --special-pairs STUDENT=TEACHER"
    # Where ids are the same, an end that nobody named is still learnt as the token that it is.
    is_unknown = not (ours and theirs) and report.is_one_to_one
    outcome = Outcome.WARN if is_unknown else Outcome.FAIL
    return Check(name="end tokens", outcome=outcome, found=f"{found}; they do not meet", change=change)


def end_tokens_meet(report: AlignmentReport) -> bool:
    """Whether an end token of one side stands for one of the other, so that the student can learn when to stop."""
    ours = {token.id for token in report.student_end_tokens}
    theirs = {token.id for token in report.teacher_end_tokens}
    if any(pair.student.id in ours and pair.teacher.id in theirs for pair in report.paired):
        return True
    # An end token that is no special token is in no pair.
    same_text = {token.text for token in report.student_end_tokens} & {
        token.text for token in report.teacher_end_tokens
    }
    return bool(same_text)


def _check_special_tokens(report: AlignmentReport) -> Check:
    lines = [f"{len(report.paired)} pair(s)"]
    if report.masked:
        lines.append(
            f"not trained on, for the teacher has no counterpart of these special tokens of the student: "
            f"{named(report.masked)}"
        )
    if report.dropped:
        lines.append(
            f"lost, as part of the tail, for the student has no place for these special tokens of the teacher: "
            f"{named(report.dropped)}"
        )
    return Check(name="special tokens", outcome=Outcome.OK, found="\n".join(lines))


def named(tokens: Sequence[SpecialToken]) -> str:
    """The first tokens as text and id, and how many there are where not all are shown."""
    shown = ", ".join(f"{token.text} ({token.id})" for token in tokens[:NUM_SHOWN]) or "none"
    return shown if len(tokens) <= NUM_SHOWN else f"{shown}, ... ({len(tokens)} in all)"


def pair_table(report: AlignmentReport) -> Table:
    """One row per pair: student's token, teacher's token, why they stand for each other."""
    table = Table("student", "teacher", "paired by", title="special tokens that stand for each other")
    for pair in report.paired:
        # Cells rather than markup: "[PAD]" shall show.
        table.add_row(Cell(named([pair.student])), Cell(named([pair.teacher])), pair.reason)
    return table


def as_plain(report: AlignmentReport) -> dict[str, Any]:  # Any: the leaves are whatever JSON holds
    """The report for programs: its own fields, the relation by name, and whether the end tokens meet."""
    plain = asdict(report)
    return plain | {"relation": report.relation.name.lower(), "end_tokens_meet": end_tokens_meet(report)}
