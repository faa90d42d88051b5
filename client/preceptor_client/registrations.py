"""Registers tokenizers with one server, remembers them, and registers them again when the server has lost one.

A server keeps a bounded number of tokenizers, and none over a restart. Knows nothing of scores.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from preceptor.fingerprint import tokenizer_id

from preceptor_client import descriptions
from preceptor_client.connection import Connection
from preceptor_client.errors import CorruptAnswerError, InvalidRequestError, TeacherUnavailableError
from preceptor_client.request import REFUSED_BY_CLIENT, RegistrationRequest
from preceptor_client.retry import Cure
from preceptor_client.status import UNKNOWN_TOKENIZER, Failure
from preceptor_client.types import Registration

_log = logging.getLogger(__name__)

MAX_RENEWALS = 3
"""How often one score registers a tokenizer again before it gives up: a server that loses it each time will go on."""
_SMALLER = "the student's tokenizer.json has to fit into one message: hand over one that does"


@dataclass(slots=True)
class _Remembered:
    request: RegistrationRequest
    fingerprint: str
    registration: Registration
    num_renewals: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is registered again, so that many scores at once share one renewal."""


class Registrations:
    """The tokenizers that one client registered with one server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._remembered: dict[tuple[str, str], _Remembered] = {}

    async def register(self, request: RegistrationRequest, *, fingerprint: str, timeout_seconds: float) -> Registration:
        """Registers a tokenizer; the JSON travels only if the server lacks it."""
        registration = await self._send(request, fingerprint=fingerprint, timeout_seconds=timeout_seconds)
        self.remember(request, fingerprint=fingerprint, registration=registration)
        return registration

    def remember(self, request: RegistrationRequest, *, fingerprint: str, registration: Registration) -> None:
        """Expects the server to know this tokenizer, and registers it as soon as the server says that it does not."""
        known = _Remembered(request=request, fingerprint=fingerprint, registration=registration)
        self._remembered[registration.tokenizer_id, request.teacher] = known

    def cure_for(self, registered_id: str, *, teacher: str) -> Cure:
        """For one score that names `registered_id`: cures UNKNOWN_TOKENIZER, and no other failure."""
        remembered = self._find(registered_id, teacher=teacher)
        num_seen = remembered.num_renewals if remembered else 0
        num_cures = 0

        async def cure(failure: Failure, seconds: float) -> str | None:
            nonlocal num_seen, num_cures
            if failure.reason != UNKNOWN_TOKENIZER:
                return None
            if remembered is None:
                fix = "hand it over first, with register_tokenizer; this client then repeats that by itself"
                raise self._lost(failure, fix)
            num_cures += 1
            if num_cures > MAX_RENEWALS:
                fix = "the server keeps fewer tokenizers than are in use: raise how many it keeps"
                raise self._lost(failure, f"it was handed over again {MAX_RENEWALS} times and lost each time; {fix}")
            num_seen = await self._renew(remembered, num_seen=num_seen, seconds=seconds)
            return "the tokenizer was handed over again"

        return cure

    def _find(self, registered_id: str, *, teacher: str) -> _Remembered | None:
        """The empty name stands for the only teacher, on either side."""
        exact = self._remembered.get((registered_id, teacher)) or self._remembered.get((registered_id, ""))
        if exact or teacher:
            return exact
        return next((known for (known_id, _), known in self._remembered.items() if known_id == registered_id), None)

    async def _renew(self, remembered: _Remembered, *, num_seen: int, seconds: float) -> int:
        """How often it was renewed by now; registered here only if nobody did so since `num_seen`."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds), remembered.lock:
                if remembered.num_renewals == num_seen:
                    remaining = seconds - (time.monotonic() - started)
                    await self._register_again(remembered, timeout_seconds=remaining)
                return remembered.num_renewals
        except TimeoutError as error:
            raise TeacherUnavailableError(
                f"teacher {self._connection.address} lost the student's tokenizer, and did not take it again within "
                f"{seconds:.1f} s"
            ) from error

    async def _register_again(self, remembered: _Remembered, *, timeout_seconds: float) -> None:
        before = remembered.registration
        after = await self._send(
            remembered.request, fingerprint=remembered.fingerprint, timeout_seconds=timeout_seconds
        )
        if after.tokenizer_id != before.tokenizer_id:
            raise CorruptAnswerError(
                f"tokenizer_id: the server called this tokenizer {before.tokenizer_id!r}, and calls it "
                f"{after.tokenizer_id!r} since it lost it: it is another teacher, or set up otherwise; register again"
            )
        if after.report != before.report:
            _log.warning("tokenizer aligns otherwise than before: tokenizer_id=%s", before.tokenizer_id)
        remembered.registration = after
        remembered.num_renewals += 1
        _log.info("tokenizer handed over again: tokenizer_id=%s", before.tokenizer_id)

    async def _send(self, request: RegistrationRequest, *, fingerprint: str, timeout_seconds: float) -> Registration:
        deadline = time.monotonic() + timeout_seconds
        for with_json in (False, True):
            answer = await self._connection.call(
                lambda stub: stub.RegisterTokenizer,
                descriptions.encode_registration(request, tokenizer_id=fingerprint, with_json=with_json),
                timeout_seconds=max(0.0, deadline - time.monotonic()),
                smaller=_SMALLER,
            )
            if not answer.needs_tokenizer:
                return descriptions.decode_registration(answer)
        raise CorruptAnswerError("needs_tokenizer: the server asks for the tokenizer.json again, though it was sent")

    def _lost(self, failure: Failure, fix: str) -> InvalidRequestError:
        message = f"teacher {self._connection.address}: {failure}: {fix}"
        return InvalidRequestError(message, field=failure.field or "tokenizer_id", reason=failure.reason)


async def fingerprint_of(request: RegistrationRequest) -> str:
    """Identifies the tokenizer. Raises InvalidRequestError where the text is none."""
    try:
        # Megabytes: a second of work, in which other calls shall go on.
        return await asyncio.to_thread(tokenizer_id, request.tokenizer_json, request.chat_template)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"tokenizer_json is no tokenizer.json of Hugging Face tokenizers: {error}",
            field="tokenizer_json",
            reason=REFUSED_BY_CLIENT,
        ) from error
