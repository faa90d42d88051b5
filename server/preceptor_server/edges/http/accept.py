"""Which form of an answer a caller wants: the Accept header against the forms that there are (RFC 9110, 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from preceptor_server.edges.http.problems import Problem, ProblemError


def choose_form(accept: str, forms: Sequence[str]) -> str:
    """The form that the header likes best, the first of those that it likes alike. Raises ProblemError: 406."""
    ranges = [_read(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    quality, form = max(((_quality(form, ranges), form) for form in forms), key=lambda pair: pair[0])
    if quality > 0:
        return form
    raise ProblemError(
        Problem(
            status=HTTPStatus.NOT_ACCEPTABLE,
            reason="NOT_ACCEPTABLE",
            detail=f"Accept allows none of {', '.join(forms)}",
        )
    )


def _quality(form: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the narrowest range that the form is in; 0 where there is none."""
    kind = form.split("/")[0]
    for wanted in (form, f"{kind}/*", "*/*"):
        found = [quality for media_range, quality in ranges if media_range == wanted]
        if found:
            return max(found)
    return 0.0


def _read(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            quality = _as_quality(value.strip())
    return media_range, quality


def _as_quality(value: str) -> float:
    digits = value.replace(".", "", 1)
    return min(float(value), 1.0) if digits.isdecimal() and digits.isascii() and len(value) <= 8 else 0.0
