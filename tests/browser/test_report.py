"""The report of a run with several tasks and teachers, in a real browser: from a file, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from preceptor_client.train.report import read_run, write_report

from tests.browser.browsing import Visit, needs_chromium, visiting
from tests.browser.test_access import violations
from tests.unit.client.train.several import write_several

pytestmark = [pytest.mark.browser, needs_chromium]

CONTRACTS, TOOLS = 0, 1
"""Of the two rollouts of a step."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_several(tmp_path_factory.mktemp("several"))
    write_report(folder / "report.html", run=read_run(folder).summary)
    return folder / "report.html"


@contextmanager
def shown(browser: Browser, report: Path, *, rollout: int, scheme: str = "light", width: int = 1280) -> Iterator[Visit]:
    """The report with one of its rollouts chosen."""
    with visiting(browser, "", scheme=scheme, width=width) as visit:
        visit.page.goto(report.as_uri())
        visit.page.locator("#rollout").select_option(index=rollout)
        yield visit


def test_turns_say_who_wrote_them(browser: Browser, report: Path) -> None:
    with shown(browser, report, rollout=TOOLS) as visit:
        groups = visit.page.locator("#tokens [role='group']")
        names = [one.get_attribute("aria-label") for one in groups.all()]
        student = [f"student, turn {turn}" for turn in (1, 2, 3)]
        assert names == [student[0], "environment", student[1], "environment", student[2]]
        expect(groups.nth(1)).to_contain_text("Oslo is the capital.")
        expect(groups.nth(2)).to_contain_text('search("population of Oslo")')
        expect(visit.page.locator("#about")).to_have_text(
            "72 tokens, 72 scored, 66 of the environment, stopped at the limit on turns, reward 0.5, scored by code"
        )
        colours = [
            groups.nth(index).locator(".token").first.evaluate("node => getComputedStyle(node).color")
            for index in (0, 1)
        ]
        assert colours[0] != colours[1]


def test_a_token_of_an_environment_is_chosen_and_explained_like_any_other(browser: Browser, report: Path) -> None:
    with shown(browser, report, rollout=TOOLS) as visit:
        detail = visit.page.locator("#detail")
        visit.page.locator("#tokens [role='group']").nth(1).locator(".token").nth(3).click()
        expect(detail).to_contain_text("the environment")
        expect(detail).not_to_contain_text("logprob")
        visit.page.locator("#tokens").press("End")
        expect(detail).to_contain_text("138 of 138")
        expect(detail).to_contain_text("code's logprob")
        expect(visit.page.locator("#tokens [aria-selected='true']")).to_have_count(1)


def test_each_teacher_has_a_number_and_a_link(browser: Browser, report: Path) -> None:
    with shown(browser, report, rollout=CONTRACTS) as visit:
        expect(visit.page.locator("#tokens [role='group']")).to_have_count(0)
        links = visit.page.locator("#ask a")
        assert [link.inner_text() for link in links.all()] == ["ask again: law ↗", "ask again: code ↗"]
        pages = [(link.get_attribute("href") or "").split("/#")[0] for link in links.all()]
        assert pages == ["http://127.0.0.1:8080", "http://127.0.0.1:8081"]
        expect(visit.page.locator("#about")).to_contain_text("scored by law and code")
        detail = visit.page.locator("#detail")
        expect(detail).to_contain_text("The mixture of law and code would say")
        names = ["law's logprob, weight 75.0%", "code's logprob, weight 25.0%", "mixture's logprob"]
        assert [name for name in detail.locator("dt").all_inner_texts() if name in names] == names
        positions = visit.page.locator("#detail .asked a")
        assert ["position=" in (link.get_attribute("href") or "") for link in positions.all()] == [True, True]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_fits_the_screen_and_axe_finds_nothing_serious(
    browser: Browser, report: Path, scheme: str, width: int
) -> None:
    for rollout in (CONTRACTS, TOOLS):
        with shown(browser, report, rollout=rollout, scheme=scheme, width=width) as visit:
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            assert visit.page.locator(".plot .main-svg").count() > 0
            assert violations(visit) == []
