"""What a person does with the page, on a real server with a tiny model."""

from __future__ import annotations

import base64
import json
import math
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Route, expect
from preceptor_client import BlockingTeacherClient, Text

from tests.browser.browsing import Visit, needs_chromium, visiting
from tests.browser.conftest import Teachers, http_server
from tests.tiny import tiny_tokenizer

pytestmark = [pytest.mark.browser, needs_chromium]

PROMPT, RESPONSE = "The capital of France is", " Paris.\nYes"
BAD_REQUEST = "status of 400"
"""What Chromium writes into its console when a server refuses."""


def asked(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The API's own answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def topk(address: str, **changes: object) -> Any:
    body = {"prompt": {"text": PROMPT}, "responses": [{"text": RESPONSE}], "top_k": 20, "temperature": 1.0}
    return asked(address, "/v1/topk", {**body, **changes})


def shown(value: float) -> str:
    """As the page writes nats."""
    return f"{value:.3f}".replace("-", "−")


def test_a_scored_response_is_a_strip_of_its_tokens(visit: Visit, address: str) -> None:
    visit.score(PROMPT, RESPONSE)
    scores = topk(address)["responses"][0]
    tokens = visit.page.locator("#strip-a .token")
    expect(tokens).to_have_count(len(RESPONSE))
    labels = [tokens.nth(index).get_attribute("aria-label") or "" for index in range(len(RESPONSE))]
    for label, logprob in zip(labels, scores["sampled_logprobs"], strict=True):
        assert f"logprob {shown(logprob)}" in label
    assert labels[0].startswith("␣:")
    assert labels[RESPONSE.index("\n")].startswith("⏎:")
    # Every letter is still there to be copied, whatever makes spaces visible.
    assert visit.page.locator("#strip-a").text_content() == RESPONSE.replace("\n", "⏎\n")


def test_a_click_shows_what_the_teacher_would_have_said(visit: Visit, address: str) -> None:
    visit.score(PROMPT, RESPONSE)
    visit.token(3).click()
    answer = topk(address)
    scores = answer["responses"][0]
    expect(visit.token(3)).to_have_attribute("aria-selected", "true")
    detail = visit.detail()
    assert "token 4 of 11" in detail
    assert shown(scores["sampled_logprobs"][3]) in detail
    assert shown(scores["entropies"][3]) in detail
    rows = visit.page.locator("#detail-a tbody tr")
    expect(rows).to_have_count(20 + 1)
    for index in (0, 7, 19):
        cells = rows.nth(index).inner_text()
        assert shown(scores["support_logprobs"][3][index]) in cells
        assert f"{index + 1}" in cells
    assert shown(scores["log_tail_mass"][3]) in rows.last.inner_text()


def test_without_a_response_the_page_shows_what_may_follow(visit: Visit, address: str) -> None:
    visit.score(PROMPT, "")
    assert "What may follow" in visit.detail()
    scores = topk(address, responses=[])["responses"][0]
    assert shown(scores["support_logprobs"][0][0]) in visit.detail()
    expect(visit.page.locator("#strip-a .token")).to_have_count(1)


def test_every_token_of_a_prompt_can_be_scored_by_itself(visit: Visit) -> None:
    visit.page.get_by_text("More", exact=True).click()
    visit.page.get_by_label("Without a response, show").select_option("all")
    visit.score("Hello", "")
    expect(visit.page.locator("#strip-a .token")).to_have_count(len("Hello") - 1)


def test_a_smaller_k_is_answered_from_the_columns(visit: Visit, address: str) -> None:
    visit.score(PROMPT, RESPONSE)
    scores = topk(address)["responses"][0]
    visit.page.route("**/v1/topk", lambda route: pytest.fail("asked again"))
    visit.slide("k-slider", 3)
    masses = [sum(math.exp(logprob) for logprob in row[:3]) for row in scores["support_logprobs"]]
    mean, least = sum(masses) / len(masses), min(masses)
    overall = visit.page.locator("#overall").inner_text()
    assert f"{100 * mean:.1f}%" in overall
    assert f"{100 * least:.1f}%" in overall
    visit.token(2).click()
    assert f"{100 * masses[2]:.1f}%" in visit.detail()
    expect(visit.page.locator("#detail-a tbody tr")).to_have_count(3 + 1)
    for position, rank in enumerate(scores["sampled_ranks"]):
        is_outside = rank is None or rank > 3
        assert ("outside" in (visit.token(position).get_attribute("class") or "")) == is_outside
    visit.page.get_by_role("button", name="Show where it covers least").click()
    expect(visit.token(masses.index(least))).to_be_focused()


def test_another_temperature_is_exact_inside_and_says_what_it_cannot_know(visit: Visit, address: str) -> None:
    visit.score(PROMPT, RESPONSE)
    visit.token(4).click()
    visit.slide("t-slider", 12)  # 10 ** (12 / 40), which the page rounds to 2.0
    asked_there = topk(address, temperature=2.0)["responses"][0]["support_logprobs"][4]
    inside = [math.exp(logprob) for logprob in asked_there]
    expected = math.log(inside[0] / sum(inside))
    detail = visit.detail()
    assert shown(expected) in detail
    assert "needs a new forward" in detail
    expect(visit.page.locator("#unknown")).to_contain_text("cannot be known")
    visit.page.get_by_role("button", name="Ask again at T = 2").click()
    visit.wait_for_tokens()
    expect(visit.page.locator("#unknown")).to_be_hidden()
    visit.token(4).click()
    assert shown(asked_there[0]) in visit.detail()


def test_a_chat_is_rendered_by_the_teachers_template(visit: Visit) -> None:
    visit.page.get_by_text("Chat", exact=True).click()
    visit.page.get_by_role("button", name="Add a message").click()
    roles = visit.page.get_by_label("Role")
    said = visit.page.get_by_label("What was said")
    roles.nth(0).fill("system")
    said.nth(0).fill("Be brief.")
    said.nth(1).fill("Hi")
    visit.page.get_by_label("Response").first.fill("Yo")
    visit.page.get_by_role("button", name="Score").click()
    visit.wait_for_tokens()
    visit.page.locator("#prompt-title").click()
    read = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert visit.page.locator("#prompt-read").text_content() == read


def test_token_ids_and_students_logprobs_are_coloured_by_the_log_ratio(visit: Visit, address: str) -> None:
    tokenizer = tiny_tokenizer()
    prompt_ids, ids = tokenizer.encode(PROMPT), tokenizer.encode("abc")
    visit.page.get_by_text("Token ids", exact=True).click()
    visit.page.get_by_label("Prompt, token ids").fill(" ".join(map(str, prompt_ids)))
    visit.page.get_by_label("Response, token ids").fill(str(ids))
    visit.page.get_by_text("More", exact=True).click()
    visit.page.get_by_label("Student's logprobs").fill("-1.5, -0.25 -9")
    visit.page.get_by_role("button", name="Score").click()
    visit.wait_for_tokens()
    logprobs = topk(address, responses=[{"ids": ids}])["responses"][0]["sampled_logprobs"]
    for position, (teacher, student) in enumerate(zip(logprobs, [-1.5, -0.25, -9.0], strict=True)):
        ratio = teacher - student
        sign = "+" if ratio > 0 else ""
        assert f"log-ratio {sign}{shown(ratio)}" in (visit.token(position).get_attribute("title") or "")
        assert ("more" if ratio > 0 else "less") in (visit.token(position).get_attribute("class") or "")
    visit.token(1).click()
    assert "student's logprob" in visit.detail()


def test_a_masked_position_is_hatched_and_says_why(visit: Visit) -> None:
    body = {"prompt": {"text": "a"}, "responses": [{"text": "bcd", "score_mask": [True, False, True]}], "top_k": 4}
    visit.page.get_by_text("JSON", exact=True).click()
    visit.page.get_by_label("Body of").fill(json.dumps(body))
    visit.page.get_by_role("button", name="Score").click()
    visit.wait_for_tokens()
    expect(visit.token(1)).to_have_class(re.compile(r"\bnone\b"))
    visit.token(1).click()
    assert "left out by the request's mask" in visit.detail()
    expect(visit.page.locator("#legend")).to_contain_text("1 not scored: left out by the request's mask")


def test_a_misaligned_position_shows_what_the_teacher_read_in_its_place(visit: Visit) -> None:
    """An answer as a canonical segmentation has it: the student's "b" and "c" are the teacher's "bc"."""
    answer = {
        **topk(visit.address, responses=[{"text": "abc"}], top_k=2),
        "texts": {"1": "a", "2": "b", "3": "c"},
        "teacher_texts": {"7": "a", "8": "bc\n"},
    }
    [response] = answer["responses"]
    answer["responses"] = [
        {
            **{name: column[:1] for name, column in response.items() if isinstance(column, list)},
            **{"ids": [1, 2, 3], "status": ["misaligned", "ok", "misaligned"], "student_logprobs": None},
            **{"positions": [1], "support_ids": [[1, 2]], "candidate_ids": None},
            **{"teacher_ids": [7, 8], "teacher_rows": [1]},
        }
    ]
    visit.page.route("**/v1/topk", lambda route: route.fulfill(json=answer))
    visit.score("a", "abc")
    visit.token(2).click()
    assert "the teacher would cut these bytes differently" in visit.detail()
    assert "The teacher read here: bc⏎" in visit.detail()
    visit.token(0).click()
    assert "The teacher read here" not in visit.detail()


def test_what_the_form_cannot_hold_is_shown_as_json(visit: Visit) -> None:
    body = {"prompt": {"text": "a"}, "responses": [{"text": "bc"}, {"text": "defg"}], "top_k": 4}
    link = visit.page.evaluate("async (request) => (await import('/static/links.js')).write({request})", body)
    visit.open(link)
    visit.wait_for_tokens()
    assert json.loads(visit.page.get_by_label("Body of").input_value()) == body
    visit.page.locator("#which").select_option(label="2")
    expect(visit.page.locator("#strip-a .token")).to_have_count(4)


@pytest.mark.parametrize(
    ("label", "value", "field"), [("K", "0", "top_k"), ("Temperature", "-1", "temperature"), ("Prompt", "", "prompt")]
)
def test_a_refusal_names_the_field_and_takes_one_there(visit: Visit, label: str, value: str, field: str) -> None:
    visit.expected = [BAD_REQUEST, "status of 422"]
    visit.type("a", "b")
    control = visit.page.get_by_label(label, exact=True)
    control.fill(value)
    visit.page.get_by_role("button", name="Score").click()
    message = visit.page.get_by_role("alert")
    expect(message).to_contain_text(field)
    expect(control).to_be_focused()
    expect(control).to_have_attribute("aria-invalid", "true")
    control.fill({"top_k": "5", "temperature": "1", "prompt": "a"}[field])
    visit.page.get_by_role("button", name="Score").click()
    visit.wait_for_tokens()
    expect(message).to_be_empty()
    expect(control).not_to_have_attribute("aria-invalid", "true")


def test_ids_that_are_none_are_told_before_anyone_is_asked(visit: Visit) -> None:
    visit.page.get_by_text("Token ids", exact=True).click()
    visit.page.get_by_label("Prompt, token ids").fill("1 2 three")
    visit.page.get_by_role("button", name="Score").click()
    expect(visit.page.get_by_role("alert")).to_contain_text("“three” is not a token id")


def test_a_server_that_is_gone_is_told_in_words(browser: Browser, model_folder: Path, tmp_path: Path) -> None:
    with (
        http_server(tmp_path, "--engine.model", str(model_folder)) as (server, address),
        visiting(browser, address) as visit,
    ):
        visit.expected = ["ERR_CONNECTION_REFUSED"]
        visit.open()
        server.stop()
        visit.type("a", "b")
        visit.page.get_by_role("button", name="Score").click()
        expect(visit.page.get_by_role("alert")).to_contain_text("does not answer")
        expect(visit.page.locator("#live-facts")).to_contain_text("no answer")


def test_a_link_fills_the_form_scores_and_goes_to_the_position(visit: Visit, address: str) -> None:
    visit.score(PROMPT, RESPONSE)
    visit.token(5).click()
    visit.page.get_by_role("button", name="Copy link").click()
    expect(visit.page.locator("#copy-link")).to_have_text("Copied")
    link = visit.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"http://{address}/#request=")
    visit.open(link.partition("/#")[2].join(["#", ""]))
    visit.wait_for_tokens()
    assert visit.page.get_by_label("Prompt", exact=True).input_value() == PROMPT
    assert visit.page.get_by_label("Response").first.input_value() == RESPONSE
    expect(visit.token(5)).to_have_attribute("aria-selected", "true")


def test_a_link_waits_for_a_model_that_is_being_loaded(visit: Visit) -> None:
    link = "#request=" + base64.urlsafe_b64encode(
        json.dumps({"prompt": {"text": PROMPT}, "responses": [{"text": RESPONSE}]}).encode()
    ).decode().rstrip("=")
    loading = {"title": "Service Unavailable", "detail": "the model is being loaded", "retry_after_seconds": 0.3}
    refused: list[str] = []

    def refuse_twice(route: Route) -> None:
        refused.append(route.request.url)
        if len(refused) > 2:
            route.continue_()
        else:
            route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(loading))

    visit.expected = ["503"]
    visit.page.route("**/v1/info", lambda route: refuse_twice(route))
    visit.open(link)
    visit.wait_for_tokens()
    assert len(refused) == 3
    expect(visit.page.get_by_role("alert")).to_be_empty()
    assert visit.page.get_by_label("Response").first.input_value() == RESPONSE


def test_a_torn_link_is_told(visit: Visit) -> None:
    visit.open("#request=%%%")
    expect(visit.page.get_by_role("alert")).to_contain_text("This link is torn")


@pytest.fixture
def recorded_group(teachers: Teachers) -> dict[str, Any]:
    """A group that a trainer asked over gRPC a moment ago, as it is listed."""
    with BlockingTeacherClient(teachers.grpc) as client:
        client.score(Text("A recorded prompt"), [np.array(tiny_tokenizer().encode("abcd"))], top_k=20)
    records = asked(teachers.first, "/v1/requests")["records"]
    newest: dict[str, Any] = records[-1]
    assert newest["preview"].startswith("A recorded prompt")
    return newest


def test_what_a_trainer_asked_appears_and_can_be_opened(
    visit: Visit, address: str, recorded_group: dict[str, Any]
) -> None:
    number = recorded_group["number"]
    visit.page.get_by_role("button", name=f"Open recorded request {number}", exact=True).click()
    visit.wait_for_tokens()
    scores = asked(address, f"/v1/requests/{number}")["responses"][0]
    expect(visit.page.locator("#strip-a .token")).to_have_count(len(scores["ids"]))
    assert f"logprob {shown(scores['sampled_logprobs'][0])}" in (visit.token(0).get_attribute("aria-label") or "")
    visit.page.get_by_role("button", name="Copy link").click()
    assert visit.page.evaluate("navigator.clipboard.readText()").partition("#")[2].startswith(f"recorded={number}")
    # The form holds the same request, so it can be asked again.
    visit.page.get_by_role("button", name="Score").click()
    visit.wait_for_tokens()
    assert f"logprob {shown(scores['sampled_logprobs'][0])}" in (visit.token(0).get_attribute("aria-label") or "")


def test_a_link_to_a_recorded_request_opens_it(visit: Visit, recorded_group: dict[str, Any]) -> None:
    visit.open(f"#recorded={recorded_group['number']}&position=2")
    visit.wait_for_tokens()
    expect(visit.page.locator("#result-title")).to_have_text(f"Recorded request {recorded_group['number']}")
    expect(visit.token(2)).to_have_attribute("aria-selected", "true")


def test_a_new_recorded_request_is_listed_without_loading_the_page_again(visit: Visit, address: str) -> None:
    visit.page.wait_for_timeout(300)
    topk(address, prompt={"text": "Fresh from the trainer"})
    expect(visit.page.locator("#records")).to_contain_text("Fresh from the trainer")


@pytest.fixture
def plain_visit(browser: Browser, model_folder: Path, tmp_path: Path) -> Iterator[Visit]:
    """A tab on a server that neither records nor may be compared with another."""
    with (
        http_server(tmp_path, "--engine.model", str(model_folder)) as (_, address),
        visiting(browser, address) as visit,
    ):
        visit.open()
        yield visit


def test_recording_that_is_off_is_told_with_how_to_switch_it_on(plain_visit: Visit) -> None:
    expect(plain_visit.page.locator("#recorded-about")).to_contain_text("--http.record 100")


def test_two_teachers_stand_side_by_side(visit: Visit, teachers: Teachers) -> None:
    own, other = (topk(address)["responses"][0]["sampled_logprobs"] for address in (teachers.first, teachers.other))
    visit.page.get_by_label("Compare with").select_option(label=f"http://{teachers.other}")
    visit.score(PROMPT, RESPONSE)
    expect(visit.page.locator("#strip-b .token")).to_have_count(len(RESPONSE))
    for position in (0, 6):
        apart = own[position] - other[position]
        for strip, value in (("a", apart), ("b", -apart)):
            label = visit.token(position, strip=strip).get_attribute("aria-label") or ""
            assert shown(value).lstrip("−") in label
            assert ("more" if value > 0 else "less") in (
                visit.token(position, strip=strip).get_attribute("class") or ""
            )
    visit.token(6, strip="b").click()
    expect(visit.token(6)).to_have_attribute("aria-selected", "true")
    assert shown(own[6]) in visit.detail()
    assert re.search(rf"against the other, nats\s+[+−]{abs(own[6] - other[6]):.3f}", visit.detail())
    assert shown(other[6]) in visit.page.locator("#detail-b").inner_text()
    visit.page.get_by_label("Colours show").select_option("surprise")
    assert f"logprob {shown(other[6])}" in (visit.token(6, strip="b").get_attribute("aria-label") or "")


def test_the_queue_is_watched(visit: Visit) -> None:
    expect(visit.page.locator("#live-facts")).to_contain_text("serving")
    expect(visit.page.locator("#spark-line")).to_have_attribute("points", re.compile(r"\S+ \S+"))


def test_a_hidden_tab_asks_nothing(visit: Visit) -> None:
    expect(visit.page.locator("#live-facts")).to_contain_text("serving")
    visit.page.evaluate("""() => {
        Object.defineProperty(document, "hidden", {value: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    visit.page.wait_for_timeout(200)
    urls: list[str] = []
    visit.page.on("request", lambda request: urls.append(request.url))
    visit.page.wait_for_timeout(2500)
    assert urls == []


def test_a_long_response_is_drawn_whole_and_reached_at_its_end(visit: Visit) -> None:
    text = "A line of text, as long as another.\n" * 113 + "and the rest."
    visit.score("Write.", text)
    expect(visit.page.locator("#strip-a .token")).to_have_count(len(text))
    visit.token(0).click()
    visit.page.keyboard.press("End")
    expect(visit.token(len(text) - 1)).to_be_focused()
    # A newline at the end of a chunk is shown by the chunk's own end.
    drawn = visit.page.locator("#strip-a").text_content() or ""
    num_cut = visit.page.locator("#strip-a .chunk").count() - 1
    assert drawn.replace("⏎\n", "⏎").replace("⏎", "\n") == text
    assert len(drawn) == len(text) + text.count("\n") - num_cut
    expect(visit.token(len(text) - 1)).to_be_in_viewport()
    assert f"token {len(text):,}".replace(",", "") in visit.detail()
