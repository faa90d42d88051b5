from __future__ import annotations

import json

import pytest
from preceptor_client.errors import (
    InvalidRequestError,
    MessageTooLargeError,
    NotImplementedByServerError,
    PreceptorError,
    TeacherUnavailableError,
)
from preceptor_client.http.problems import NO_ANSWER, Problem, exception_for, read_problem

URL = "http://teacher:8080"


def test_every_member_of_problem_details_is_read() -> None:
    body = {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "top_k: 0 is outside [1, 64]",
        "reason": "INVALID_ARGUMENT",
        "field": "top_k",
        "retry_after_seconds": 1.5,
    }
    assert read_problem(400, json.dumps(body).encode()) == Problem(
        status=400,
        message="top_k: 0 is outside [1, 64]",
        reason="INVALID_ARGUMENT",
        field="top_k",
        retry_after_seconds=1.5,
    )


def test_members_that_are_null_are_as_good_as_absent() -> None:
    body = b'{"detail": null, "reason": null, "field": null, "retry_after_seconds": null}'
    assert read_problem(503, body) == Problem(status=503, message="")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"text"', b'{"detail": 5}', b"\xff"])
def test_what_another_program_wrote_leaves_the_status(body: bytes) -> None:
    assert read_problem(502, body) == Problem(status=502, message="")


@pytest.mark.parametrize(
    ("status", "expected", "is_transient"),
    [
        (400, InvalidRequestError, False),
        (404, InvalidRequestError, False),
        (409, InvalidRequestError, False),
        (422, InvalidRequestError, False),
        (413, MessageTooLargeError, False),
        (501, PreceptorError, False),
        (500, PreceptorError, False),
        (429, TeacherUnavailableError, True),
        (502, TeacherUnavailableError, True),
        (503, TeacherUnavailableError, True),
        (504, TeacherUnavailableError, False),
        (NO_ANSWER, TeacherUnavailableError, True),
    ],
)
def test_each_status_has_its_exception_and_only_what_may_pass_is_repeated(
    status: int, expected: type[PreceptorError], is_transient: bool
) -> None:
    problem = Problem(status=status, message="why", reason="REASON", field="top_k")
    error = exception_for(problem, url=URL)
    assert type(error) is expected
    assert str(error).startswith(f"teacher {URL}: ")
    assert "why" in str(error)
    assert problem.is_transient is is_transient


def test_what_a_teacher_cannot_do_has_an_exception_of_its_own() -> None:
    problem = Problem(status=422, message="temperature: at 1 only", reason="NOT_IMPLEMENTED", field="temperature")
    assert type(exception_for(problem, url=URL)) is NotImplementedByServerError


def test_a_refusal_carries_field_and_reason() -> None:
    error = exception_for(Problem(status=404, message="x", reason="UNKNOWN_TEACHER", field="teacher"), url=URL)
    assert isinstance(error, InvalidRequestError)
    assert (error.field, error.reason) == ("teacher", "UNKNOWN_TEACHER")
    assert str(error) == f"teacher {URL}: 404 Not Found: x"


def test_an_overloaded_server_says_when_to_come_back() -> None:
    error = exception_for(Problem(status=429, message="full", reason="QUEUE_FULL", retry_after_seconds=2.0), url=URL)
    assert isinstance(error, TeacherUnavailableError)
    assert (error.code, error.retry_after_seconds) == ("429", 2.0)


def test_a_page_that_is_not_there_may_be_another_program() -> None:
    error = exception_for(Problem(status=404, message=""), url=URL)
    assert str(error) == f"teacher {URL}: 404 Not Found (is this the HTTP side, http.port, of a preceptor-server?)"
    assert type(error) is PreceptorError
