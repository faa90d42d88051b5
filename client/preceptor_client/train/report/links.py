"""Links from rollouts to the teacher's page, which opens with the same request filled in (docs/http.md, "Links")."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.rollout_log import AskedOf, RolloutRow, TokenRow
from preceptor_client.train.report.rundata import RunData
from preceptor_client.train.teacher.agreement import Alignment
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
    teacher: str = ""
    """Whom it asks, by the name in the settings; empty where the only teacher has none."""
    others: tuple[PageLink, ...] = ()
    """Links of the same rollout to its other teachers."""


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
    """One for each rollout of the run, in their order; none at all where no teacher has a page. `instead` stands in
    for the run's own settings, of every teacher. Raises RunDirectoryError where one is no URL."""
    pages = {name: _page(run, name, instead=instead) for name in run.teachers}
    if not any(pages.values()):
        return []
    found = []
    for row in run.rollouts:
        first, *others = [
            _link(asked, row=row, teacher=_linked(run, row, asked, name=name, pages=pages, instead=instead), name=name)
            for name, asked in _asked_by_name(run, row).items()
        ]
        found.append(replace(first, others=tuple(others)))
    return found


def _page(run: RunData, name: str, *, instead: OtherPage | None) -> str:
    """Empty where the teacher has none."""
    url = instead.url if instead else str(run.teachers[name].get("page", ""))
    try:
        return checked_url(url) if url else ""
    except ValueError as error:
        key = f"teachers.{name}.page" if name else "teacher.page"
        raise RunDirectoryError(f"the settings of {run.summary.directory}: {key}: {error}") from error


def _asked_by_name(run: RunData, row: RolloutRow) -> dict[str, AskedOf]:
    """What it takes to ask each teacher of a rollout again, by its name in the settings."""
    if teachers := row.get("teachers"):
        return teachers
    # The names that teachers have on their servers need not be those of the settings.
    names = [name for name in run.teachers if name and run.agreed_with(name).get("teacher") == row.get("teacher")]
    return {names[0] if names else "": row}


def _linked(
    run: RunData, row: RolloutRow, asked: AskedOf, *, name: str, pages: Mapping[str, str], instead: OtherPage | None
) -> LinkedTeacher | None:
    agreed, settings = run.agreed_with(name), run.asked(name, task=row.get("run_task", ""))
    is_known = bool(name) or agreed.get("teacher") == asked.get("teacher")
    if not agreed or not is_known or not pages.get(name):
        return None
    common = {
        "top_k": settings.get("top_k"),
        "temperature": settings.get("temperature"),
        "tokenizer": _tokenizer(agreed, instead=instead),
        "segmentation": agreed.get("segmentation"),
        "paper_token_ids": agreed.get("paper_token_ids"),
        "teacher": agreed["teacher"],
        "adapter": agreed.get("teacher_adapter"),
    }
    # What is empty is the server's default.
    return LinkedTeacher(page=pages[name], common={key: value for key, value in common.items() if value})


def _tokenizer(agreed: Alignment, *, instead: OtherPage | None) -> str:
    """What the page's server knows the student's tokenizer by. One that was started since has forgotten the student;
    its own has the same ids where the vocabularies are identical, and only ends are not one class then."""
    if instead and instead.tokenizer:
        return instead.tokenizer
    is_own = instead is not None and agreed.get("relation") == "identical"
    return str(agreed.get("teacher_tokenizer_id" if is_own else "tokenizer_id", ""))


def _link(asked: AskedOf, *, row: RolloutRow, teacher: LinkedTeacher | None, name: str) -> PageLink:
    if "teacher_prompt_ids" not in asked:
        why = "this run did not keep what the teacher read: an older trainer wrote it"
        return PageLink(href="", title=why, teacher=name)
    if teacher is None:
        who = name or asked["teacher"]
        return PageLink(href="", title=f"teacher {who!r} scored this, and has no page that is known here", teacher=name)
    prompt_ids, tokens = asked["teacher_prompt_ids"], row["tokens"]
    logprobs = [token.get("student_logprob") for token in tokens]
    href = _href(teacher, prompt_ids, tokens)
    if None not in logprobs:
        with_student = _href(teacher, prompt_ids, tokens, student_logprobs=logprobs)
        if _fits(with_student):
            return PageLink(href=with_student, title=f"asks {teacher.page} for this response again", teacher=name)
    if not _fits(href):
        why = f"prompt and response are too long: the link would have {len(href):,} characters"
        return PageLink(href="", title=f"{why}, and {MAX_CHARACTERS:,} are safe in a browser", teacher=name)
    title = f"asks {teacher.page} for this response again, without the student's logprobs"
    return PageLink(href=href, title=title, teacher=name)


def _href(teacher: LinkedTeacher, prompt_ids: Sequence[int], tokens: Sequence[TokenRow], **more: object) -> str:
    response = {"ids": [token["id"] for token in tokens], **more}
    body = {"prompt": {"teacher_ids": prompt_ids}, "responses": [response], **teacher.common}
    text = json.dumps(body, separators=(",", ":")).encode()
    return f"{teacher.page}/#request={base64.urlsafe_b64encode(text).decode().rstrip('=')}"


def _fits(href: str) -> bool:
    return len(href) + _LONGEST_SUFFIX <= MAX_CHARACTERS
