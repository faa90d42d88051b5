"""What the page computes of a teacher's columns, against numpy in float64."""

# N = scored positions, K = support size, V = vocabulary size

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from preceptor_client.commands.status_words import WHY_NO_SCORE

from tests.browser.browsing import Visit, needs_chromium

pytestmark = [pytest.mark.browser, needs_chromium]

Columns = npt.NDArray[np.float64]
ROUNDING = 1e-12
"""Both compute in float64, in another order."""
V, K, N, TEMPERATURE = 40, 8, 25, 0.7


def log_softmax(logits: Columns) -> Columns:
    shifted = logits - logits.max(-1, keepdims=True)
    normalised: Columns = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


@pytest.fixture
def logits_NV() -> Columns:
    return np.random.default_rng(5).normal(size=(N, V)) * 3


def response_of(logits_NV: Columns) -> dict[str, Any]:
    """Columns as /v1/topk has them; the sampled token of position n has rank n + 1, while that is inside."""
    logprobs_NV = log_softmax(logits_NV / TEMPERATURE)
    order_NV = np.argsort(-logprobs_NV, axis=1)
    support_NK = np.take_along_axis(logprobs_NV, order_NV[:, :K], 1)
    sampled_N = [float(logprobs_NV[n, order_NV[n, n]]) for n in range(N)]
    return {
        "ids": [int(order_NV[n, n]) for n in range(N)],
        "positions": list(range(N)),
        "support_ids": order_NV[:, :K].tolist(),
        "support_logprobs": support_NK.tolist(),
        "sampled_logprobs": sampled_N,
        "sampled_ranks": [n + 1 if n < K else None for n in range(N)],
        "log_tail_mass": np.log1p(-np.exp(support_NK).sum(1)).tolist(),
        "entropies": None,
        "student_logprobs": None,
        "teacher_ids": None,
    }


def call(visit: Visit, function: str, *arguments: object, module: str = "maths") -> Any:
    """Calls a function of one of the page's modules; its arrays come back as lists, what is not finite as text."""
    return visit.page.evaluate(
        """async ([module, name, values]) => {
            const answer = (await import(`/static/${module}.js`))[name](...values);
            const plain = (one) => Number.isFinite(one) ? one : String(one);
            return ArrayBuffer.isView(answer) ? Array.from(answer, plain) : answer;
        }""",
        [module, function, list(arguments)],
    )


@pytest.mark.parametrize("k", [1, 3, K])
def test_a_smaller_support_covers_the_sum_of_its_masses(visit: Visit, logits_NV: Columns, k: int) -> None:
    total = call(visit, "meanCoverage", response_of(logits_NV), k)
    masses_N = np.sort(np.exp(log_softmax(logits_NV / TEMPERATURE)), axis=1)[:, ::-1][:, :k].sum(1)
    assert total["inside"] == pytest.approx(masses_N.mean(), abs=ROUNDING)
    assert total["least"] == pytest.approx(masses_N.min(), abs=ROUNDING)
    assert total["leastPosition"] == int(masses_N.argmin())
    assert total["sampledInside"] == pytest.approx(k / N, abs=ROUNDING)


@pytest.mark.parametrize("k", [1, 5, K])
@pytest.mark.parametrize("to", [0.1, 0.7, 1.0, 6.3])
def test_another_temperature_inside_the_support_is_a_softmax_of_the_logits_there(
    visit: Visit, logits_NV: Columns, k: int, to: float
) -> None:
    response = response_of(logits_NV)
    for n in (0, N - 1):
        moved = call(visit, "supportAt", response["support_logprobs"][n], {"k": k, "from": TEMPERATURE, "to": to})
        logits_k = np.sort(logits_NV[n])[::-1][:k]
        np.testing.assert_allclose(moved, log_softmax(logits_k / to), atol=1e-11)


def test_means_at_another_temperature_are_those_of_the_renormalised_supports(visit: Visit, logits_NV: Columns) -> None:
    k, to = 5, 1.3
    means = call(visit, "meanSupportAt", response_of(logits_NV), {"k": k, "from": TEMPERATURE, "to": to})
    logprobs_Nk = log_softmax(np.sort(logits_NV, axis=1)[:, ::-1][:, :k] / to)
    assert means["entropy"] == pytest.approx(-(np.exp(logprobs_Nk) * logprobs_Nk).sum(1).mean(), abs=ROUNDING)
    assert means["sampled"] == pytest.approx(np.diag(logprobs_Nk[:k]).mean(), abs=ROUNDING)
    assert means["numInside"] == k


def test_padding_of_a_support_has_no_mass_at_any_temperature(visit: Visit) -> None:
    row = [float(np.log(0.5)), float(np.log(0.25)), None]
    moved = call(visit, "supportAt", row, {"k": 3, "from": 1, "to": 0.5})
    assert moved[:2] == pytest.approx([np.log(0.8), np.log(0.2)])
    assert moved[2] == -np.inf


def test_a_signal_is_the_log_ratio_where_the_students_logprob_is_known(visit: Visit, logits_NV: Columns) -> None:
    response = response_of(logits_NV)
    response["ids"].append(0)  # a position without a row
    assert call(visit, "signals", response) == [*response["sampled_logprobs"], "NaN"]
    student = np.linspace(-3, -0.1, N + 1)
    response["student_logprobs"] = student.tolist()
    expected = np.array(response["sampled_logprobs"]) - student[:N]
    assert call(visit, "signals", response)[:N] == pytest.approx(expected, abs=ROUNDING)


def test_two_cuts_of_a_text_are_matched_by_their_bytes(visit: Visit) -> None:
    one, other = ["ab", "c", "é", "d"], ["a", "b", "c", "<0xC3>", "<0xA9>", "d"]
    assert call(visit, "counterparts", one, other) == [-1, 2, -1, 5]
    assert call(visit, "counterparts", other, one) == [-1, -1, 1, -1, -1, 3]


def test_the_teachers_tokens_around_a_position_reach_from_scored_to_scored(visit: Visit) -> None:
    response = {"positions": [0, 3, 4], "teacher_rows": [0, 4, 5], "teacher_ids": [9, 8, 7, 6, 5, 4, 3]}
    spans = [call(visit, "teacherSpan", response, position) for position in range(6)]
    assert spans == [[0, 4], [0, 4], [0, 4], [4, 5], [5, 7], [5, 7]]


def test_a_link_brings_back_the_request_that_it_was_made_of(visit: Visit) -> None:
    request = {"prompt": {"text": "é ␣ \U0001f600 <script>&position=9"}, "top_k": 4}
    link = call(visit, "write", {"request": request, "response": 1, "position": 0}, module="links")
    assert call(visit, "read", link, module="links") == {"request": request, "response": 1, "position": 0}


def test_the_page_gives_the_reasons_that_preceptor_score_gives(visit: Visit) -> None:
    words = {status.name.lower(): why for status, why in WHY_NO_SCORE.items()}
    assert {status: call(visit, "whyNoScore", status, module="words") for status in words} == words
