"""Records how the tokens of student and teachers correspond; saved with the run and read for its report.

Does not judge it: `alignment` does. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preceptor.wire import SegmentationPolicy

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.types import Registration, TeacherInfo

ALIGNMENT_FILE = "alignment.json"
_MAX_SHOWN_TOKENS = 12
_TEACHERS = "teachers"
"""Key of the file that holds several teachers."""

Alignment = dict[str, Any]  # Any: as in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whom a run asks, and how the student's tokens stand for the teacher's."""

    teacher: TeacherInfo
    registration: Registration
    adapter: str = ""
    """Of the teacher; empty takes it as it is."""
    policy: SegmentationPolicy
    """What every score is asked for with; "auto" is resolved."""
    paper_token_ids: tuple[int, ...] = ()
    """With the policy PAPER: the student's ids whose first occurrence in a response is masked."""
    warnings: tuple[str, ...] = ()
    """What the user should know before the first step; those of the registration's report come first."""

    @property
    def is_one_to_one(self) -> bool:
        return self.registration.report.is_one_to_one

    @property
    def revision(self) -> str:
        """Of the weights that were to score the run when it started."""
        return self.teacher.revision_of(self.adapter)


def save_agreement(directory: Path, agreement: Agreement) -> None:
    """Writes `alignment.json` of a run with one teacher."""
    _write(directory, _as_saved(agreement))


def save_agreements(directory: Path, agreements: Mapping[str, Agreement]) -> None:
    """Writes `alignment.json`: of several teachers by their names in the settings, of one as a run without names."""
    if len(agreements) == 1:
        return save_agreement(directory, *agreements.values())
    _write(directory, {_TEACHERS: {name: _as_saved(agreement) for name, agreement in agreements.items()}})


def read_alignment(directory: Path) -> Alignment:
    """`alignment.json`; empty where a run has no such file. Raises RunDirectoryError where it is none."""
    path = directory / ALIGNMENT_FILE
    if not path.is_file():
        return {}
    try:
        alignment: Alignment = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error!r}") from error
    return alignment


def read_agreed(directory: Path) -> dict[str, Alignment]:
    """What `alignment.json` holds of each teacher, by its name in the settings; a teacher that has the file for itself
    has the name "". Empty where a run has no such file. Raises RunDirectoryError where it is none."""
    alignment = read_alignment(directory)
    if not alignment:
        return {}
    try:
        return {**alignment[_TEACHERS]} if _TEACHERS in alignment else {"": alignment}
    except TypeError as error:
        raise RunDirectoryError(f"{directory / ALIGNMENT_FILE} cannot be read: {error!r}") from error


def alignment_tables(directory: Path) -> dict[str, list[tuple[str, str]]]:
    """What `alignment.json` says, for people: names and texts, of each teacher as `read_agreed` names it. Raises
    RunDirectoryError where it is none."""
    try:
        return {teacher: _rows(alignment) for teacher, alignment in read_agreed(directory).items()}
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{directory / ALIGNMENT_FILE} cannot be read: {error!r}") from error


def _as_saved(agreement: Agreement) -> Alignment:
    report = agreement.registration.report
    return {
        "teacher": agreement.teacher.name,
        "teacher_adapter": agreement.adapter,
        "teacher_revision": agreement.revision,
        "teacher_tokenizer_id": agreement.teacher.tokenizer_id,
        "tokenizer_id": agreement.registration.tokenizer_id,
        "segmentation": agreement.policy.name.lower(),
        "paper_token_ids": list(agreement.paper_token_ids),
        **asdict(report),
        "relation": report.relation.name.lower(),
        "warnings": list(agreement.warnings),
    }


def _write(directory: Path, alignment: Alignment) -> None:
    text = json.dumps(alignment, indent=2, ensure_ascii=False) + "\n"
    (directory / ALIGNMENT_FILE).write_text(text, encoding="utf-8")


def _rows(alignment: Alignment) -> list[tuple[str, str]]:
    one_to_one = "ids correspond one to one" if alignment["is_one_to_one"] else "ids do not correspond one to one"
    rows = [
        ("vocabularies", f"{alignment['relation']}; {one_to_one}"),
        ("segmentation", alignment["segmentation"]),
        ("student's tokens with a counterpart", f"{alignment['mapped_share']:.2%}"),
        ("teacher's tokens with a counterpart", f"{alignment['projected_share']:.2%}"),
        ("student's end tokens", _tokens(alignment["student_end_tokens"])),
        ("teacher's end tokens", _tokens(alignment["teacher_end_tokens"])),
        ("differences", ", ".join(alignment["differences"])),
        ("paper's tokens", ", ".join(map(str, alignment["paper_token_ids"]))),
        ("paired although their texts differ", _pairs(alignment["paired"])),
        ("student's special tokens without a score", _tokens(alignment["masked"])),
        ("teacher's special tokens without a place", _tokens(alignment["dropped"])),
        *(("warning", warning) for warning in alignment["warnings"]),
    ]
    return [(name, text) for name, text in rows if text]


def _tokens(tokens: Iterable[Mapping[str, object]]) -> str:
    return _listed([f"{token['text']} ({token['id']})" for token in tokens])


def _pairs(pairs: Iterable[Mapping[str, Any]]) -> str:  # Any: as in the file
    return _listed(
        [
            f"{pair['student']['text']} = {pair['teacher']['text']} ({pair['reason']})"
            for pair in pairs
            if pair["reason"] != "same text"
        ]
    )


def _listed(texts: list[str]) -> str:
    left = len(texts) - _MAX_SHOWN_TOKENS
    return ", ".join(texts[:_MAX_SHOWN_TOKENS]) + (f", and {left} more" if left > 0 else "")
