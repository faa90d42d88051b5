"""Whom the page serves: without a mouse, without seeing colours, in the dark, on a narrow screen, and under attack."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.browsing import Visit, needs_chromium, visiting
from tests.browser.conftest import Teachers

pytestmark = [pytest.mark.browser, needs_chromium]

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "javascript:alert(1)//",
    "\u202e\u2066 right to left \x00\x1b[31m",
]


def axe_source() -> str:
    """The text of axe-core, from the package that carries it."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core is missing: pip install 'preceptor[dev]'")
    [path] = Path(spec.submodule_search_locations[0]).rglob("axe.min.js")
    return path.read_text()


def violations(visit: Visit) -> list[dict[str, Any]]:
    """What axe-core finds to be serious or critical, with the nodes at fault."""
    visit.page.evaluate(axe_source())
    found = visit.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        {
            "id": one["id"],
            "help": one["help"],
            "nodes": [(node["html"][:200], node["failureSummary"]) for node in one["nodes"]],
        }
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_serious(browser: Browser, teachers: Teachers, scheme: str, width: int) -> None:
    with visiting(browser, teachers.first, scheme=scheme, width=width) as visit:
        visit.expected = ["status of 400", "status of 422"]
        visit.open()
        assert violations(visit) == []
        visit.page.get_by_label("Temperature").fill("-1")
        visit.type("a", "b")
        visit.page.get_by_role("button", name="Score").click()
        expect(visit.page.get_by_role("alert")).not_to_be_empty()
        assert violations(visit) == []
        visit.page.get_by_label("Temperature").fill("1")
        visit.page.get_by_text("More", exact=True).click()
        visit.score("The capital", " of\nFrance")
        visit.slide("k-slider", 3)
        visit.slide("t-slider", 9)
        assert violations(visit) == []
        visit.page.get_by_label("Compare with").select_option(label=f"http://{teachers.other}")
        visit.page.get_by_text("Chat", exact=True).click()
        visit.page.get_by_label("What was said").fill("a")
        visit.page.get_by_role("button", name="Score").click()
        visit.page.wait_for_selector("#strip-b .token")
        assert violations(visit) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_a_token_leaves_its_text_readable(browser: Browser, address: str, scheme: str) -> None:
    """WCAG's contrast ratio of the ink against each shade over the card: at least 4.5."""
    with visiting(browser, address, scheme=scheme) as visit:
        visit.open()
        visit.score("a", "bc")
        ratios = visit.page.evaluate("""() => {
            const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            const painted = (...colours) => {
                for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
                return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const light = (rgb) => rgb.map((part) => part / 255)
                .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
            const token = document.querySelector("#strip-a .token");
            const card = getComputedStyle(document.getElementById("strip-a")).backgroundColor;
            const ratios = {};
            for (const side of ["less", "more"]) for (let level = 0; level <= 6; level += 1) {
                token.className = `token ${side} l${level}`;
                token.style.transition = "none";
                const style = getComputedStyle(token);
                const [ink, ground] = [light(painted(style.color)), light(painted(card, style.backgroundColor))];
                ratios[`${side} ${level}`] = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
            }
            return ratios;
        }""")
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
        assert len(set(ratios.values())) == 13, "the seven shades of each side differ, but for the faintest"


def test_everything_is_reached_without_a_mouse(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    keyboard.press("Tab")
    expect(visit.page.get_by_text("Skip to the form")).to_be_focused()
    keyboard.press("Enter")
    expect(visit.page.locator("#ask")).to_be_focused()
    keyboard.press("Tab")
    expect(visit.page.get_by_label("Text", exact=True)).to_be_focused()
    keyboard.press("Tab")
    keyboard.type("The capital")
    keyboard.press("Tab")
    keyboard.type(" of France")
    keyboard.press("Control+Enter")
    visit.wait_for_tokens()
    for _ in range(40):
        keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.classList.contains('token')"):
            break
    keyboard.press("Home")
    expect(visit.token(0)).to_be_focused()
    keyboard.press("ArrowRight")
    keyboard.press("ArrowRight")
    keyboard.press("ArrowLeft")
    expect(visit.token(1)).to_be_focused()
    expect(visit.token(1)).to_have_attribute("aria-selected", "true")
    expect(visit.page.locator("#strip-a .token[tabindex='0']")).to_have_count(1)
    assert "token 2 of 10" in visit.detail()
    keyboard.press("Enter")
    expect(visit.page.locator("#detail-a h3")).to_be_focused()


def test_what_happens_is_announced(visit: Visit) -> None:
    visit.score("a", "bcd")
    expect(visit.page.get_by_role("status").first).to_contain_text("Scored 3 tokens, mean logprob")


def test_the_theme_is_chosen_and_kept(visit: Visit) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = visit.page.evaluate(ground)
    button = visit.page.get_by_role("button", name="Theme")
    button.click()
    assert visit.page.evaluate(ground) == light
    button.click()
    dark = visit.page.evaluate(ground)
    assert dark != light
    visit.open()
    expect(button).to_have_text("Theme: dark")
    assert visit.page.evaluate(ground) == dark


@pytest.mark.parametrize("width", [400, 700, 1280])
def test_nothing_is_wider_than_the_screen(browser: Browser, teachers: Teachers, width: int) -> None:
    with visiting(browser, teachers.first, width=width) as visit:
        visit.open()
        visit.page.get_by_label("Compare with").select_option(label=f"http://{teachers.other}")
        visit.score("word " * 60, "a-very-long-word-without-a-single-break-" * 5)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(visit: Visit, text: str) -> None:
    """In prompt, response, tokens, the support and the recorded list: no element, no script, no complaint."""
    foreign = "main :is(img, script, iframe, svg, [onerror], [onload])"
    elements = f"document.querySelectorAll('{foreign}').length"
    assert visit.page.evaluate(elements) == 0
    visit.score(text, text)
    visit.page.locator("#prompt-title").click()
    assert visit.page.locator("#prompt-read").text_content() == text
    visit.token(0).click()
    expect(visit.page.locator("#records")).to_contain_text(text[:8])
    assert visit.page.evaluate(elements) == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_of_tokens_and_of_errors_stay_text(visit: Visit, text: str) -> None:
    """A teacher's tokenizer may hold anything, and so may what a server refuses with."""
    answer = {
        "request_id": text, "teacher": text, "revision": text, "adapter": text, "tokenizer_id": text, "top_k": 2,
        "temperature": 1.0, "segmentation": text, "prompt_ids": [1],
        "responses": [{
            "ids": [1, 2], "status": ["ok", text], "positions": [0], "sampled_logprobs": [-1.0], "sampled_ranks": [1],
            "log_tail_mass": [-2.0], "entropies": [1.0], "support_ids": [[1, 2]], "support_logprobs": [[-1.0, -1.5]],
            "candidate_ids": [[1]], "candidate_logprobs": [[-1.0]], "student_logprobs": None, "teacher_ids": [1],
            "teacher_rows": [0], "unmapped_mass": 0.0, "digest": text}],
        "texts": {"1": text, "2": text}, "teacher_texts": {"1": text},
        "timings": {"decode_ms": 1.0, "queue_ms": 1.0, "forward_ms": 1.0, "total_ms": 1.0},
    }  # fmt: skip
    visit.page.route("**/v1/topk", lambda route: route.fulfill(json=answer))
    visit.score("a", "b")
    assert (visit.token(0).get_attribute("title") or "").startswith(text.replace(" ", "␣")[:4])
    visit.token(1).click()
    visit.token(0).click()
    assert visit.page.locator("#result img, #result script, #result svg").count() == 0
    refusal = {"title": text, "detail": text, "field": text, "status": 400}
    visit.expected = ["status of 400"]
    visit.page.route("**/v1/topk", lambda route: route.fulfill(status=400, body=json.dumps(refusal)))
    visit.page.get_by_role("button", name="Score").click()
    expect(visit.page.get_by_role("alert")).to_contain_text(text[:6])
    assert visit.page.locator("#ask img, #ask script, #ask svg").count() == 0


def test_the_page_comes_under_a_policy_that_allows_no_inline_code(visit: Visit) -> None:
    answer = visit.page.request.get(f"http://{visit.address}/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    visit.expected = ["CSP: script-src", "CSP: style-src", "Content Security Policy"]
    visit.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hasRun = true";
        document.body.append(script);
    }""")
    assert visit.page.evaluate("window.hasRun") is None
    assert any("CSP: script-src" in one for one in visit.complaints), "else no test would see a violation"
