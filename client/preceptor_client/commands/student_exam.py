"""Hands a student's tokenizer to a teacher, scores one sentence through it, and says what that shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preceptor.fingerprint import tokenizer_id as fingerprint
from preceptor.fingerprint import vocabulary_id
from preceptor.wire import LogprobDtype, PositionStatus

from preceptor_client.commands.alignment_view import check_alignment
from preceptor_client.commands.checks import Check, Outcome
from preceptor_client.commands.status_words import WHY_NO_SCORE
from preceptor_client.commands.student_tokenizer import StudentTokenizer
from preceptor_client.errors import NotImplementedByServerError, PreceptorError
from preceptor_client.teacher import TeacherClient
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.types import AlignmentReport, GroupScores, ResponseScores, StudentIds, TeacherInfo

GOOD_SCORED_SHARE = 0.75
"""Of an ordinary English sentence at least this share of positions should have a score."""
_NUM_PROMPT_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentExam:
    """What was found about one student at one teacher."""

    checks: tuple[Check, ...]
    report: AlignmentReport | None = None
    """None where the server did not take the tokenizer."""
    probe: GroupScores | None = None


async def examine_student(
    client: TeacherClient,
    *,
    student: StudentTokenizer,
    teacher: TeacherInfo,
    teacher_end_token_ids: Sequence[int],
    special_pairs: Mapping[str, str],
    top_k: int,
) -> StudentExam:
    """Registers, judges the report, and scores PROBE_SENTENCE with the server's default policy."""
    if not (teacher.capabilities.other_tokenizers or is_teachers_own(teacher, student=student)):
        return StudentExam(checks=(check_own_tokenizer(teacher, student=student),))
    try:
        registration = await client.register_tokenizer(
            student.tokenizer_json,
            chat_template=student.chat_template,
            teacher=teacher.name,
            end_token_ids=student.end_token_ids,
            teacher_end_token_ids=teacher_end_token_ids,
            special_pairs=special_pairs,
            vocabulary_size=student.vocabulary_size,
        )
    except NotImplementedByServerError:
        return StudentExam(checks=(check_own_tokenizer(teacher, student=student),))
    except PreceptorError as error:
        change = "correct what the refusal names, or take another student"
        refused = Check(name="tokenizer", outcome=Outcome.FAIL, found=str(error), change=change)
        return StudentExam(checks=(refused,))
    report = registration.report
    check, scores = await _probe(
        client, student=student, teacher=teacher, tokenizer_id=registration.tokenizer_id, top_k=top_k
    )
    return StudentExam(checks=(*check_alignment(report), check), report=report, probe=scores)


async def _probe(
    client: TeacherClient, *, student: StudentTokenizer, teacher: TeacherInfo, tokenizer_id: str, top_k: int
) -> tuple[Check, GroupScores | None]:
    prompt_ids, response_ids = student.probe_ids[:_NUM_PROMPT_TOKENS], student.probe_ids[_NUM_PROMPT_TOKENS:]
    if not response_ids:
        found = f"the tokenizer makes only {len(prompt_ids)} token(s) of a sentence"
        return Check(name="student probe", outcome=Outcome.SKIPPED, found=found), None
    try:
        scores = await client.score(
            StudentIds(prompt_ids),
            [response_ids],
            top_k=top_k,
            teacher=teacher.name,
            tokenizer_id=tokenizer_id,
            logprob_dtype=LogprobDtype.F32,
        )
    except PreceptorError as error:
        change = "do not train this student here until this works; the server's log says more"
        return Check(name="student probe", outcome=Outcome.FAIL, found=str(error), change=change), None
    return check_student_probe(scores), scores


def is_teachers_own(teacher: TeacherInfo, *, student: StudentTokenizer) -> bool:
    """Whether both have the same tokenizer, chat template included."""
    return fingerprint(student.tokenizer_json, student.chat_template) == teacher.tokenizer_id


def check_vocabulary(found: StudentTokenizer | InvalidStudentError) -> Check:
    """Whether the student's model has a row for each token of its tokenizer, and what stands in for those that lack
    one; which of several chat templates is meant."""
    name = "vocabulary"
    if isinstance(found, InvalidStudentError):
        change = "correct the student's folder or the setting, as the message says: preceptor train refuses it too"
        return Check(name=name, outcome=Outcome.FAIL, found=str(found), change=change)
    if found.notes:
        change = "nothing, if that is what was meant: preceptor train goes on with it"
        return Check(name=name, outcome=Outcome.WARN, found="\n".join(found.notes), change=change)
    if not found.vocabulary_size:
        return Check(name=name, outcome=Outcome.SKIPPED, found="the folder names no number of rows (vocab_size)")
    rows = f"each token of the tokenizer has one of the model's {found.vocabulary_size} rows"
    return Check(name=name, outcome=Outcome.OK, found=rows)


def check_own_tokenizer(teacher: TeacherInfo, *, student: StudentTokenizer) -> Check:
    """For a server that takes its own tokenizer only: whether the student's is that one."""
    if is_teachers_own(teacher, student=student):
        found = f"identical ({teacher.tokenizer_id[:12]}); this server does not compare end tokens"
        return Check(name="tokenizer", outcome=Outcome.OK, found=found)
    theirs = "this server takes its own tokenizer only, and the student's differs from it"
    if vocabulary_id(student.tokenizer_json) == teacher.vocabulary_id:
        found = f"{theirs} in the chat template, the merges or the normaliser; the vocabulary is the same"
        change = "put the teacher's tokenizer files into the student's folder, or take a server that aligns tokenizers"
        return Check(name="tokenizer", outcome=Outcome.FAIL, found=found, change=change)
    change = "take a server that aligns tokenizers, or a student and a teacher of one tokenizer family"
    return Check(name="tokenizer", outcome=Outcome.FAIL, found=f"{theirs} in its vocabulary", change=change)


def check_student_probe(scores: GroupScores) -> Check:
    """How much of an ordinary sentence the teacher has an opinion on."""
    response = scores.responses[0]
    found = (
        f"policy {scores.segmentation.name.lower()}: {response.scored_share:.0%} of {len(response.status_T)} positions "
        f"scored, {response.support_mass:.1%} of the teacher's mass in the top {scores.top_k}, "
        f"{response.unmapped_mass:.1%} without a place in the student's vocabulary{_why_not(response)}"
    )
    if response.scored_share >= GOOD_SCORED_SHARE:
        return Check(name="student probe", outcome=Outcome.OK, found=found)
    outcome = Outcome.WARN if len(response.positions_N) else Outcome.FAIL
    change = "expect to learn from few positions only: take a student whose tokenizer is closer to the teacher's"
    return Check(name="student probe", outcome=outcome, found=found, change=change)


def _why_not(response: ResponseScores) -> str:
    counts = {words: int((response.status_T == status).sum()) for status, words in WHY_NO_SCORE.items()}
    return "".join(f"\n{count} x no score: {words}" for words, count in counts.items() if count)


def probe_as_plain(scores: GroupScores) -> dict[str, str | float | dict[str, int]]:
    """The probe for programs: policy, shares in [0, 1], and the number of positions by status."""
    response = scores.responses[0]
    counts = {status.name.lower(): int((response.status_T == status).sum()) for status in PositionStatus}
    return {
        "segmentation": scores.segmentation.name.lower(),
        "scored_share": response.scored_share,
        "support_mass": response.support_mass,
        "unmapped_mass": response.unmapped_mass,
        "positions": {name: count for name, count in counts.items() if count},
    }
