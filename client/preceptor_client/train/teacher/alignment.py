"""Registers the student's tokenizer with the teacher's server, and refuses an alignment that the run may not use."""

from __future__ import annotations

import logging

from preceptor.wire import SegmentationPolicy, VocabularyRelation

from preceptor_client.errors import NotImplementedByServerError
from preceptor_client.train.errors import UnsuitableTeacherError
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.agreement import Agreement
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.types import AlignmentReport, Registration, TeacherInfo

_log = logging.getLogger(__name__)

_NUM_QUOTED_WARNINGS = 3
_NEEDS_NO_CONSENT = (VocabularyRelation.IDENTICAL, VocabularyRelation.PADDED)
_POLICIES = {
    "as_is": SegmentationPolicy.AS_IS,
    "mask": SegmentationPolicy.MASK,
    "canonical": SegmentationPolicy.CANONICAL,
    "paper": SegmentationPolicy.PAPER,
}


def align(scorer: Scorer, *, teacher: TeacherInfo, config: TeacherConfig, student: Student) -> Agreement:
    """Registers the student's tokenizer. Raises UnsuitableTeacherError, which names the setting to change, where the
    tokenizers differ more than the settings accept, or than the policy of the settings can bear."""
    registration = _register(scorer, teacher=teacher, config=config, student=student)
    _check_relation(registration, teacher=teacher, config=config)
    policy = _resolve_policy(registration, teacher=teacher, config=config)
    report = registration.report
    _log.info(
        "tokenizers aligned: relation=%s segmentation=%s mapped_share=%.4f projected_share=%.4f differences=%s "
        "student_end_tokens=%s teacher_end_tokens=%s tokenizer_id=%s",
        *(report.relation.name.lower(), policy.name.lower(), report.mapped_share, report.projected_share),
        *(",".join(report.differences) or "none", [token.text for token in report.student_end_tokens]),
        *([token.text for token in report.teacher_end_tokens], registration.tokenizer_id),
    )
    return Agreement(
        teacher=teacher,
        registration=registration,
        policy=policy,
        paper_token_ids=_paper_token_ids(config, student=student) if policy is SegmentationPolicy.PAPER else (),
        warnings=report.warnings,
    )


def _register(scorer: Scorer, *, teacher: TeacherInfo, config: TeacherConfig, student: Student) -> Registration:
    if not teacher.capabilities.other_tokenizers and student.tokenizer_id == teacher.tokenizer_id:
        return _as_it_is(teacher, config=config)
    try:
        return scorer.register_tokenizer(
            student.tokenizer.backend_tokenizer.to_str(),
            chat_template=student.tokenizer.chat_template,
            teacher=teacher.name,
            end_token_ids=student.end_token_ids,
            teacher_end_token_ids=config.end_token_ids,
            special_pairs=config.special_pairs,
            vocabulary_size=student.vocabulary_size,
        )
    except NotImplementedByServerError as error:
        raise UnsuitableTeacherError(
            f"the student's tokenizer ({student.tokenizer_id}) is not that of teacher {teacher.name!r} "
            f"({teacher.tokenizer_id}), and its server does not align tokenizers ({error}): train a student that "
            "shares the teacher's tokenizer, or take a server that does"
        ) from error


def _as_it_is(teacher: TeacherInfo, *, config: TeacherConfig) -> Registration:
    """With a teacher that aligns nothing, its own tokenizer can still be scored unchanged."""
    if config.end_token_ids or config.special_pairs or config.segmentation not in ("auto", "as_is"):
        raise UnsuitableTeacherError(
            f"the server of teacher {teacher.name!r} does not align tokens: set teacher.segmentation=as_is, and leave "
            "out teacher.end_token_ids and teacher.special_pairs"
        )
    report = AlignmentReport(
        relation=VocabularyRelation.IDENTICAL,
        is_one_to_one=True,
        mapped_share=1.0,
        projected_share=1.0,
        differences=(),
        paired=(),
        masked=(),
        dropped=(),
        student_end_tokens=(),
        teacher_end_tokens=(),
        warnings=("the server does not align tokens: what the teacher would cut otherwise is scored as it is",),
    )
    return Registration(tokenizer_id=teacher.tokenizer_id, report=report)


def _check_relation(registration: Registration, *, teacher: TeacherInfo, config: TeacherConfig) -> None:
    report = registration.report
    if report.relation in _NEEDS_NO_CONSENT or config.accept_other_tokenizer:
        return
    quoted = "; ".join(report.warnings[:_NUM_QUOTED_WARNINGS])
    raise UnsuitableTeacherError(
        f"the vocabularies of the student and of teacher {teacher.name!r} are not the same but "
        f"{report.relation.name.lower()}: {report.mapped_share:.1%} of the student's tokens have a counterpart"
        f"{f' ({quoted})' if quoted else ''}. Set teacher.accept_other_tokenizer=true to train all the same, or train "
        "a student that shares the teacher's tokenizer"
    )


def _resolve_policy(registration: Registration, *, teacher: TeacherInfo, config: TeacherConfig) -> SegmentationPolicy:
    report = registration.report
    if not teacher.capabilities.other_tokenizers:
        return SegmentationPolicy.AS_IS
    if config.segmentation == "auto":
        return SegmentationPolicy.MASK if report.is_one_to_one else SegmentationPolicy.CANONICAL
    policy = _POLICIES[config.segmentation]
    if policy is not SegmentationPolicy.CANONICAL and not report.is_one_to_one:
        raise UnsuitableTeacherError(
            f"teacher.segmentation={config.segmentation} needs ids that correspond one to one, and those of the "
            f"student and of teacher {teacher.name!r} do not ({report.relation.name.lower()}): set "
            "teacher.segmentation=auto or canonical"
        )
    return policy


def _paper_token_ids(config: TeacherConfig, *, student: Student) -> tuple[int, ...]:
    """Every id of every text. The order does not matter to the rule."""
    ids = [
        int(token)
        for text in config.paper_tokens
        for token in student.tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    if not ids:
        raise UnsuitableTeacherError(
            f"teacher.paper_tokens={list(config.paper_tokens)} encode to no token: change them"
        )
    return tuple(dict.fromkeys(ids))
