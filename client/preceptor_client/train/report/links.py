"""Links from rollouts to the teacher's page, which opens with the same request filled in (docs/http.md, "Links")."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.rollout_log import RolloutRow
from preceptor_client.train.report.rundata import RunData
from preceptor_client.url import checked_url

MAX_CHARACTERS = 64_000
"""Of a link, with the position that is added to it. Browsers take more in a page and less in a message or a bookmark;
this is about a prompt of 6,000 tokens."""
_LONGEST_SUFFIX = len("&response=0&position=9999999")

Body = Mapping[str, Any]  # Any: the leaves are whatever JSON holds


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLink:
    """Where one rollout can be looked into."""

    href: str
    """`&response=0&position=T` may follow it. Empty where there is no link."""
    title: str
    """What it opens, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherPage:
    """A page to link to in place of that of the run's teacher: of a server that was started since."""

    url: str
    tokenizer: str = ""
    """What that server knows the student's tokenizer by: a name of its http.tokenizers, or an id. Empty where the run
    says enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedTeacher:
    """A teacher of a run: its page, and what every request of the run to it has in common."""

    page: str
    common: Body


def links_of(run: RunData, *, instead: OtherPage | None = None) -> list[PageLink]:
    """One for each rollout of the run, in their order; none at all where its teacher has no page. `instead` stands in
    for the run's own setting. Raises RunDirectoryError where that is no URL."""
    try:
        url = instead.url if instead else str(run.settings["teacher"].get("page", ""))
        page = checked_url(url) if url else ""
    except ValueError as error:
        raise RunDirectoryError(f"the settings of {run.summary.directory}: teacher.page: {error}") from error
    if not page:
        return []
    teachers = _teachers_of(run, page=page, tokenizer=_tokenizer(run, instead=instead))
    return [_link(row, teachers=teachers) for row in run.rollouts]


def _tokenizer(run: RunData, *, instead: OtherPage | None) -> str:
    """What the page's server knows the student's tokenizer by. One that was started since has forgotten the student;
    its own has the same ids where the vocabularies are identical, and only ends are not one class then."""
    if instead and instead.tokenizer:
        return instead.tokenizer
    is_own = instead is not None and run.agreed.get("relation") == "identical"
    return str(run.agreed.get("teacher_tokenizer_id" if is_own else "tokenizer_id", ""))


def _teachers_of(run: RunData, *, page: str, tokenizer: str) -> dict[str, LinkedTeacher]:
    """By name."""
    agreed, settings = run.agreed, run.settings["teacher"]
    if not agreed:
        return {}
    common = {
        "top_k": settings.get("top_k"),
        "temperature": settings.get("temperature"),
        "tokenizer": tokenizer,
        "segmentation": agreed.get("segmentation"),
        "paper_token_ids": agreed.get("paper_token_ids"),
        "teacher": agreed["teacher"],
        "adapter": agreed.get("teacher_adapter"),
    }
    # What is empty is the server's default.
    given = {name: value for name, value in common.items() if value}
    return {agreed["teacher"]: LinkedTeacher(page=page, common=given)}


def _link(row: RolloutRow, *, teachers: Mapping[str, LinkedTeacher]) -> PageLink:
    if "teacher_prompt_ids" not in row:
        return PageLink(href="", title="this run did not keep what the teacher read: an older trainer wrote it")
    teacher = teachers.get(row["teacher"])
    if teacher is None:
        return PageLink(href="", title=f"teacher {row['teacher']!r} scored this, and has no page that is known here")
    logprobs = [token["student_logprob"] for token in row["tokens"]]
    href = _href(teacher, row)
    if None not in logprobs:
        with_student = _href(teacher, row, student_logprobs=logprobs)
        if _fits(with_student):
            return PageLink(href=with_student, title=f"asks {teacher.page} for this response again")
    if not _fits(href):
        why = f"prompt and response are too long: the link would have {len(href):,} characters"
        return PageLink(href="", title=f"{why}, and {MAX_CHARACTERS:,} are safe in a browser")
    return PageLink(href=href, title=f"asks {teacher.page} for this response again, without the student's logprobs")


def _href(teacher: LinkedTeacher, row: RolloutRow, **more: object) -> str:
    response = {"ids": [token["id"] for token in row["tokens"]], **more}
    body = {"prompt": {"teacher_ids": row["teacher_prompt_ids"]}, "responses": [response], **teacher.common}
    text = json.dumps(body, separators=(",", ":")).encode()
    return f"{teacher.page}/#request={base64.urlsafe_b64encode(text).decode().rstrip('=')}"


def _fits(href: str) -> bool:
    return len(href) + _LONGEST_SUFFIX <= MAX_CHARACTERS
