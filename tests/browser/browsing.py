"""A real browser on the page: pages that note down every complaint, and what tests do with them."""

# T = tokens of a response

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Playwright, ViewportSize, expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
SECONDS = 20
_NOTE_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


@dataclass(slots=True)
class Visit:
    """One tab, the address that it shows, and what its browser complained of."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of complaints that a test provokes."""

    def open(self, fragment: str = "") -> None:
        """Loads the page, and waits until it knows who teaches."""
        self.page.goto("about:blank")
        self.page.goto(f"http://{self.address}/{fragment}")
        # Not wait_for_function: it evaluates text again and again, which the page's policy forbids.
        expect(self.page.locator("#teacher-line")).not_to_contain_text("…")

    def type(self, prompt: str, response: str) -> None:
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        self.page.get_by_label("Response").first.fill(response)

    def score(self, prompt: str, response: str) -> None:
        """Fills the form in, sends it, and waits for the whole strip."""
        self.type(prompt, response)
        self.page.get_by_role("button", name="Score").click()
        self.wait_for_tokens()

    def wait_for_tokens(self) -> None:
        self.page.wait_for_selector("#ask:not([aria-busy])")
        self.page.wait_for_selector("#strip-a .token")

    def note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def note_dialog(self, dialog: Dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def detail(self) -> str:
        return self.page.locator("#detail-a").inner_text()

    def token(self, index: int, *, strip: str = "a") -> Locator:
        return self.page.locator(f"#strip-{strip} [data-index='{index}']")

    def slide(self, slider: str, value: int) -> None:
        """Moves a slider as a person would: the page sees input events."""
        self.page.locator(f"#{slider}").fill(str(value))
        self.page.wait_for_timeout(60)


@contextmanager
def launched(playwright: Playwright) -> Iterator[Browser]:
    """Chromium for the length of the block."""
    assert CHROMIUM is not None
    # Its sandbox refuses to work for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def visiting(
    browser: Browser, address: str, *, scheme: str = "light", width: int = 1280, height: int = 900
) -> Iterator[Visit]:
    """A tab of its own. A complaint that the test did not expect fails it."""
    viewport: ViewportSize = {"width": width, "height": height}
    context = browser.new_context(viewport=viewport, color_scheme="dark" if scheme == "dark" else "light")
    context.set_default_timeout(SECONDS * 1000)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.add_init_script(_NOTE_VIOLATIONS)
    page = context.new_page()
    visit = Visit(page, address)
    # Playwright marks what it calls back, and a method of a class with slots cannot be marked.
    page.on("console", lambda message: visit.note_message(message))
    page.on("pageerror", lambda error: visit.complaints.append(f"uncaught: {error}"))
    page.on("dialog", lambda dialog: visit.note_dialog(dialog))
    try:
        yield visit
        unexpected = [one for one in visit.complaints if not any(part in one for part in visit.expected)]
        assert unexpected == []
    finally:
        context.close()


def free_port() -> int:
    """One that the kernel gave a moment ago, for a server whose address another must know before it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
