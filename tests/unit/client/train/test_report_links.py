"""Links of the report's rollouts to the teacher's page: what they ask there, and where there are none."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from preceptor_client import cli
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.rollout_log import RolloutRow, TokenRow
from preceptor_client.train.report import read_run, write_report
from preceptor_client.train.report.links import MAX_CHARACTERS, OtherPage, PageLink, links_of

from tests.unit.client.train.reports import CONFIG, embedded, step_row, write_run

PAGE = "http://127.0.0.1:8080"
ALIGNMENT = {
    "teacher": "large",
    "teacher_adapter": "",
    "teacher_tokenizer_id": "teachers-own",
    "tokenizer_id": "registered",
    "segmentation": "mask",
    "paper_token_ids": [],
    "relation": "identical",
    "is_one_to_one": True,
    "mapped_share": 1.0,
    "projected_share": 1.0,
    "student_end_tokens": [],
    "teacher_end_tokens": [],
    "differences": [],
    "paired": [],
    "masked": [],
    "dropped": [],
    "warnings": [],
}


def config_with(page: str) -> str:
    settings = f'name = "large"\ntop_k = 32\ntemperature = 0.5\npage = {json.dumps(page)}'
    return CONFIG.replace('name = "large"', settings)


def token(id_: int, logprob: float | None = -1.25) -> TokenRow:
    return {"text": f"<{id_}>", "id": id_, "status": "ok", "student_logprob": logprob}


def rollout(*tokens: TokenRow, teacher: str = "large", prompt_ids: list[int] | None = None) -> RolloutRow:
    return {
        "step": 1,
        "slot": 0,
        "task": "",
        "prompt": "what the student read",
        "finish_reason": "stop",
        "tokens": list(tokens),
        "teacher": teacher,
        "teacher_prompt_ids": [7, 8, 9] if prompt_ids is None else prompt_ids,
    }


def run_with(directory: Path, *rollouts: RolloutRow, page: str = PAGE, alignment: dict[str, Any] | None = None) -> Path:
    return write_run(
        directory,
        [step_row(1)],
        rollouts=rollouts,
        config=config_with(page),
        alignment=ALIGNMENT if alignment is None else alignment,
    )


def links(directory: Path, *rollouts: RolloutRow, **changes: Any) -> list[PageLink]:  # Any: as of run_with
    return links_of(read_run(run_with(directory, *rollouts, **changes)))


def request_in(href: str) -> Any:  # Any: the leaves are whatever JSON holds
    """What the page reads behind the #: base64url without padding."""
    match = re.fullmatch(r"[^#]*/#request=([A-Za-z0-9_-]+)", href)
    assert match, href
    return json.loads(base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4)))


def test_a_link_asks_for_what_the_run_asked_for(tmp_path: Path) -> None:
    [link] = links(tmp_path, rollout(token(5), token(6, -0.5)))
    assert link.href.startswith(f"{PAGE}/#request=")
    assert request_in(link.href) == {
        "prompt": {"teacher_ids": [7, 8, 9]},
        "responses": [{"ids": [5, 6], "student_logprobs": [-1.25, -0.5]}],
        "top_k": 32,
        "temperature": 0.5,
        "tokenizer": "registered",
        "segmentation": "mask",
        "teacher": "large",
    }
    assert link.title == f"asks {PAGE} for this response again"


def test_adapter_and_the_papers_tokens_are_asked_for(tmp_path: Path) -> None:
    alignment = {**ALIGNMENT, "segmentation": "paper", "paper_token_ids": [3, 4], "teacher_adapter": "law"}
    [link] = links(tmp_path, rollout(token(5)), alignment=alignment)
    asked = request_in(link.href)
    assert (asked["segmentation"], asked["paper_token_ids"], asked["adapter"]) == ("paper", [3, 4], "law")


def test_logprobs_of_which_one_was_not_measured_are_left_out(tmp_path: Path) -> None:
    [link] = links(tmp_path, rollout(token(5), token(6, None)))
    assert request_in(link.href)["responses"] == [{"ids": [5, 6]}]
    assert link.title.endswith("without the student's logprobs")


def test_a_run_without_a_page_has_no_links(tmp_path: Path) -> None:
    assert links(tmp_path, rollout(token(5)), page="") == []
    write_run(tmp_path / "old", [step_row(1)], rollouts=[rollout(token(5))])
    assert links_of(read_run(tmp_path / "old")) == []


def test_each_rollout_has_its_own_link_in_order(tmp_path: Path) -> None:
    found = links(tmp_path, rollout(token(5)), rollout(token(6), prompt_ids=[1]))
    assert [request_in(link.href)["responses"][0]["ids"] for link in found] == [[5], [6]]
    assert [request_in(link.href)["prompt"]["teacher_ids"] for link in found] == [[7, 8, 9], [1]]


def test_what_another_teacher_scored_is_not_linked_to_this_ones_page(tmp_path: Path) -> None:
    [link, other] = links(tmp_path, rollout(token(5)), rollout(token(5), teacher="other"))
    assert link.href
    assert other == PageLink(href="", title="teacher 'other' scored this, and has no page that is known here")


def test_a_rollout_of_an_older_trainer_says_why_it_has_no_link(tmp_path: Path) -> None:
    row = rollout(token(5))
    del row["teacher_prompt_ids"]
    assert links(tmp_path, row) == [
        PageLink(href="", title="this run did not keep what the teacher read: an older trainer wrote it")
    ]


def test_a_run_that_agreed_on_nothing_has_no_teacher_to_link_to(tmp_path: Path) -> None:
    [link] = links(tmp_path, rollout(token(5)), alignment={})
    assert link.href == ""


def test_a_link_that_is_too_long_loses_the_students_logprobs_first_and_then_itself(tmp_path: Path) -> None:
    response = [token(100_000 + index, -1.2345) for index in range(1000)]
    found = links(
        tmp_path,
        rollout(*response, prompt_ids=[1] * 100),
        rollout(*response, prompt_ids=[1] * 18_500),
        rollout(*response, prompt_ids=[1] * 30_000),
    )
    assert [len(link.href) > 0 for link in found] == [True, True, False]
    assert all(len(link.href) + len("&response=0&position=999") <= MAX_CHARACTERS for link in found)
    assert "student_logprobs" in request_in(found[0].href)["responses"][0]
    assert request_in(found[1].href)["responses"] == [{"ids": [one["id"] for one in response]}]
    assert len(request_in(found[1].href)["prompt"]["teacher_ids"]) == 18_500
    assert re.fullmatch(
        r"prompt and response are too long: the link would have 8\d,\d{3} characters, and 64,000 are safe in a browser",
        found[2].title,
    )


@pytest.mark.parametrize("page", ["javascript:alert(1)//", "127.0.0.1:8080", "http://user:secret@host/"])
def test_a_page_that_is_no_address_is_refused_in_whatever_settings_it_stands(page: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"teacher\.page"):
        links(tmp_path, rollout(token(5)), page=page)


def test_another_page_stands_in_for_the_runs_own(tmp_path: Path) -> None:
    run = read_run(run_with(tmp_path, rollout(token(5)), page=""))
    [link] = links_of(run, instead=OtherPage(url="http://elsewhere:9/t"))
    assert link.href.startswith("http://elsewhere:9/t/#request=")
    # That server has forgotten who registered with another; the teacher's own tokenizer it knows.
    assert request_in(link.href)["tokenizer"] == "teachers-own"
    [link] = links_of(run, instead=OtherPage(url="http://elsewhere:9", tokenizer="student"))
    assert request_in(link.href)["tokenizer"] == "student"


def test_another_page_keeps_the_registered_tokenizer_where_ids_are_not_the_teachers(tmp_path: Path) -> None:
    run = read_run(run_with(tmp_path, rollout(token(5)), alignment={**ALIGNMENT, "relation": "permuted"}))
    [link] = links_of(run, instead=OtherPage(url=PAGE))
    assert request_in(link.href)["tokenizer"] == "registered"


def test_the_report_embeds_the_links_beside_the_rollouts(tmp_path: Path) -> None:
    rows = [rollout(token(5)), rollout(token(6), teacher="</script><b>other")]
    write_report(tmp_path / "report.html", run=read_run(run_with(tmp_path, *rows)).summary)
    first, second = embedded(tmp_path / "report.html", "links")
    assert request_in(first["href"])["responses"][0]["ids"] == [5]
    assert second["href"] == ""
    assert "</script><b>other" in second["title"]
    assert embedded(tmp_path / "report.html", "rollouts") == rows
    assert "<b>other" not in (tmp_path / "report.html").read_text()


def test_the_report_of_a_run_without_a_page_embeds_no_links(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", run=read_run(run_with(tmp_path, rollout(token(5)), page="")).summary)
    assert embedded(tmp_path / "report.html", "links") == []


def test_preceptor_report_links_to_the_page_that_it_is_given(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", rollout(token(5)), page="")
    assert cli.main(["report", str(run), "--page", "http://elsewhere:9/", "--tokenizer", "student"]) == 0
    [link] = embedded(run / "report.html", "links")
    assert link["href"].startswith("http://elsewhere:9/#request=")
    assert request_in(link["href"])["tokenizer"] == "student"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["a", "--page", "elsewhere:9"], "write http://HOST:PORT"),
        (["a", "b", "--page", PAGE], "--page links the rollouts of one run"),
        (["a", "--tokenizer", "student"], "give both"),
    ],
)
def test_a_page_that_cannot_be_linked_exits_with_2(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *options]) == 2
    assert says in capsys.readouterr().err
