"""The page of a server that asks for keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from preceptor_server.tenants.command import run

from tests.browser.browsing import Visit, needs_chromium, visiting
from tests.browser.conftest import http_server
from tests.browser.test_access import violations

pytestmark = [pytest.mark.browser, needs_chromium]

REFUSED = "status of 401"


@pytest.fixture
def access_file(tmp_path: Path) -> Path:
    return tmp_path / "access.toml"


@pytest.fixture
def key(access_file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["new", "--tenant", "team", "--file", str(access_file)]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def locked(browser: Browser, model_folder: Path, access_file: Path, key: str, tmp_path: Path) -> Iterator[Visit]:
    """A tab of a server that asks for keys, before it has shown one."""
    arguments = ("--engine.model", str(model_folder), "--access.file", str(access_file), "--http.record", "5")
    with http_server(tmp_path / "server", *arguments) as (_, address), visiting(browser, address) as visit:
        visit.expected = [REFUSED]
        visit.page.goto(f"http://{address}/")
        yield visit


def test_the_page_asks_for_a_key_once_and_goes_on_with_it(locked: Visit, key: str) -> None:
    page = locked.page
    dialog = page.get_by_role("dialog", name="This server asks for a key")
    expect(dialog).to_be_visible()
    assert violations(locked) == []
    dialog.get_by_label("Key").fill("prk_wrong_key")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_have_text("The key is not accepted (any more).")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_be_hidden()
    locked.score("the", " dog")
    expect(page.locator("#teacher-line")).not_to_contain_text("…")
    page.reload()  # the tab keeps it
    locked.score("the", " dog")
    expect(dialog).to_be_hidden()
    assert page.evaluate("localStorage.length") == 0
    assert key not in page.content()


def test_who_declines_is_asked_again_when_asking_and_not_by_the_figures(locked: Visit, key: str) -> None:
    dialog = locked.page.get_by_role("dialog", name="This server asks for a key")
    expect(dialog).to_be_visible()
    locked.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    locked.page.wait_for_timeout(2500)  # the figures ask every second or so
    expect(dialog).to_be_hidden()
    locked.type("the", " dog")
    locked.page.get_by_role("button", name="Score").click()
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Use this key").click()
    locked.wait_for_tokens()
