from __future__ import annotations

import pytest
from preceptor_server.edges.http.accept import choose_form
from preceptor_server.edges.http.problems import ProblemError

FORMS = ("application/json", "application/x-ndjson", "application/msgpack")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/msgpack", "application/msgpack"),
        ("APPLICATION/MSGPACK", "application/msgpack"),
        ("text/html, application/x-ndjson;q=0.5", "application/x-ndjson"),
        ("application/json;q=0.1, application/msgpack;q=0.9", "application/msgpack"),
        ("*/*;q=0.5, application/msgpack", "application/msgpack"),
        ("application/*, application/json;q=0", "application/x-ndjson"),
        ("application/json;q=0.5;level=1, application/x-ndjson;q=0.4", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
    ],
)
def test_the_form_that_the_header_likes_best_is_chosen(accept: str, form: str) -> None:
    assert choose_form(accept, FORMS) == form


@pytest.mark.parametrize(
    "accept", ["text/html", "application/json;q=0", "application/json;q=", "application/json;q=nan", "image/*", ";q=1"]
)
def test_what_is_none_of_them_is_406(accept: str) -> None:
    with pytest.raises(ProblemError) as caught:
        choose_form(accept, FORMS)
    assert (caught.value.problem.status, caught.value.problem.reason) == (406, "NOT_ACCEPTABLE")
