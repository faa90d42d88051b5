"""How fast the HTTP page is with a long response: python -m bench.page [--tokens 4096] [--top-k 64] [--rounds 5]

paint   from the answer's last byte until its first tokens are on the screen, parsing included
drawn   the same, until all of them are in the page
click   from a click on a token until the screen shows its support; tokens all over the response
busy    of a click, what the page's main thread computed for it: unlike the others it does not grow with what else the
        machine does
slide   from a move of the K slider until the screen shows what the smaller support covers, over the whole response

The engine is the fake one, for the server's time is no part of these; the browser is Chromium without a window. "The
screen" is the task after the next frame: the browser has then laid out and painted. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import CDPSession, Page, sync_playwright

from bench.machine import describe_machine
from tests.browser.browsing import launched
from tests.browser.conftest import http_server
from tests.engines.fake import fake_arguments
from tests.tiny import save_tiny, tiny_llama

NUM_CLICKS = 20
WORDS = ("the", "teacher", "reads", "what", "student", "wrote", "and", "answers", "at", "every", "position\n")

_WATCH = """() => {
    const strip = document.getElementById("strip-a");
    window.seen = {};
    const total = () => strip.querySelectorAll(".token").length;
    strip.replaceChildren();
    new MutationObserver((changes, observer) => {
        const now = performance.now();
        if (!window.seen.started) {
            window.seen.started = now;
            requestAnimationFrame(() => { setTimeout(() => { window.seen.paint = performance.now(); }); });
        }
        if (total() === window.numTokens) {
            observer.disconnect();
            window.seen.drawn = now;
        }
    }).observe(strip, {childList: true});
}"""
_TIMES = """async () => {
    while (!window.seen.paint || !window.seen.drawn) await new Promise((resolve) => setTimeout(resolve, 100));
    const answers = performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/v1/topk"));
    const answer = answers.at(-1);
    return {paint: window.seen.paint - answer.responseEnd, drawn: window.seen.drawn - answer.responseEnd,
            bytes: answer.decodedBodySize};
}"""
_ACT = """([selector, event, value]) => new Promise((resolve) => {
    const node = document.querySelector(selector);
    node.scrollIntoView({block: "center"});
    requestAnimationFrame(() => setTimeout(() => {
        if (value !== null) node.value = value;
        const start = performance.now();
        node.dispatchEvent(new Event(event, {bubbles: true}));
        /* The page may itself wait for a frame, so the second one is looked at. */
        const frames = event === "input" ? 2 : 1;
        const next = (left) => requestAnimationFrame(() => left > 1 ? next(left - 1)
            : setTimeout(() => resolve(performance.now() - start)));
        next(frames);
    }));
})"""


def text_of(num_tokens: int) -> str:
    """Words and lines; the tiny tokenizer has a token per byte."""
    generator = random.Random(0)
    text = ""
    while len(text) < num_tokens:
        text += " " + generator.choice(WORDS)
    return text[:num_tokens]


def one_round(page: Page, address: str, *, num_tokens: int, top_k: int, seed: int) -> dict[str, Any]:
    page.goto("about:blank")
    page.goto(f"http://{address}/")
    page.wait_for_selector("#live-facts dd")
    page.evaluate("(count) => { window.numTokens = count; }", num_tokens)
    page.locator("#prompt-text").fill("Write.")
    page.locator("#response-text").fill(text_of(num_tokens))
    page.locator("#top-k").fill(str(top_k))
    page.evaluate(_WATCH)
    page.locator("#score").click()
    times: dict[str, Any] = page.evaluate(_TIMES)
    positions = random.Random(seed).sample(range(num_tokens), NUM_CLICKS)
    times["click"], times["busy"] = [], []
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    for at in positions:
        before = busy_ms(session)
        times["click"].append(page.evaluate(_ACT, [f"#strip-a [data-index='{at}']", "click", None]))
        times["busy"].append(busy_ms(session) - before)
    times["slide"] = [page.evaluate(_ACT, ["#k-slider", "input", str(k)]) for k in range(top_k - 1, top_k - 9, -1)]
    return times


def busy_ms(session: CDPSession) -> float:
    """Processor time of the main thread so far."""
    metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(metrics["TaskDuration"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = save_tiny(Path(name) / "tokenizer", tiny_llama())
        fake = [*fake_arguments(), "--engine.tokenizer", str(folder), "--engine.max-model-len", "65536"]
        with (
            http_server(Path(name) / "server", *fake) as (_, address),
            sync_playwright() as playwright,
            launched(playwright) as browser,
        ):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            rounds = [
                one_round(page, address, num_tokens=options.tokens, top_k=options.top_k, seed=seed)
                for seed in range(options.rounds)
            ]
            version = browser.version
    print(
        json.dumps(
            {
                **figures(rounds),
                **vars(options),
                "chromium": version,
                "load_average": os.getloadavg()[0],
                **describe_machine("playwright"),
            },
            indent=1,
        )
    )


def figures(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and maxima in milliseconds."""
    figures: dict[str, Any] = {"answer_megabytes": round(rounds[0]["bytes"] / 1e6, 2)}
    for name in ("paint", "drawn", "click", "busy", "slide"):
        values = [value for one in rounds for value in (one[name] if isinstance(one[name], list) else [one[name]])]
        figures[f"{name}_ms"] = {"median": round(statistics.median(values), 1), "max": round(max(values), 1)}
    return figures


if __name__ == "__main__":
    main()
