"""Turns a teacher's refusal of one group into an error of its example. Asks nothing."""

from __future__ import annotations

from collections.abc import Callable

from preceptor_client.errors import InvalidRequestError, MessageTooLargeError, PreceptorError
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.excerpts import printable
from preceptor_client.train.errors import InvalidDataError

OnRefused = Callable[[InvalidDataError], None]
"""Takes the refusal of one example; raises it, or returns for the rest to go on without the example."""

_FIELDS_OF_A_GROUP = ("prompt", "responses")
_REASONS_OF_A_GROUP = ("ANSWER_TOO_LARGE",)


def as_refusal(error: PreceptorError, *, example: Example) -> InvalidDataError | None:
    """The refusal, which names the example; None where the error would have met any other group as well: an unknown
    teacher, a server that cannot be reached, settings that it does not take."""
    is_own = isinstance(error, MessageTooLargeError) or (
        isinstance(error, InvalidRequestError)
        and (error.field.startswith(_FIELDS_OF_A_GROUP) or error.reason in _REASONS_OF_A_GROUP)
    )
    if not is_own:
        return None
    return InvalidDataError(f"the teacher refuses it: {printable(str(error))}", where=example.name)
