"""Students that registered, and how each aligns with the teacher. Never parses what a student sends.

A pairing takes a worker's seconds, and is shared by every alignment of the same tokenizer.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Protocol

from preceptor_server.alignment.exchange import PairingJob
from preceptor_server.alignment.flights import Flights
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.kept import KeptAlignments, PairingKey
from preceptor_server.alignment.pairing import own_pairing
from preceptor_server.alignment.specials import align
from preceptor_server.alignment.types import Alignment, Pairing, TeacherVocabulary
from preceptor_server.alignment.worker_process import WorkerProcess
from preceptor_server.config import LimitsConfig
from preceptor_server.errors import InvalidTokenizerError, UnknownTokenizerError

_log = logging.getLogger(__name__)

MAX_END_TOKENS = 1024
MAX_SPECIAL_PAIRS = 1024
MAX_CHAT_TEMPLATE_CHARACTERS = 1 << 20
MAX_VOCABULARY_SIZE = 1 << 22
_MAX_OWN_PAIRINGS = 4
"""Numbers of logits for which students may use the teacher's own tokenizer at once."""


class PairingWorker(Protocol):
    """Reads a student's tokenizer, somewhere where it can do no harm."""

    async def pair(self, job: PairingJob) -> Pairing:
        """Raises InvalidTokenizerError where it cannot be used; may be cancelled."""


class AlignmentRegistry:
    """The students of one teacher."""

    def __init__(
        self,
        teacher: TeacherVocabulary,
        *,
        own_tokenizer_id: str,
        teacher_end_ids: tuple[int, ...],
        limits: LimitsConfig,
        worker: PairingWorker | None = None,
    ) -> None:
        """`worker` defaults to processes of its own; another is for tests."""
        self._teacher = teacher
        self._own_tokenizer_id = own_tokenizer_id
        self._teacher_end_ids = teacher_end_ids
        self._limits = limits
        self._worker = worker or WorkerProcess(timeout_seconds=limits.tokenizer_seconds)
        self._flights: Flights[Pairing] = Flights()
        self._kept = KeptAlignments(max_pairings=limits.max_tokenizers)
        # Apart, so that strangers never push out students that use the teacher's own tokenizer.
        self._own_kept = KeptAlignments(max_pairings=_MAX_OWN_PAIRINGS)
        self._own_pairing = own_pairing(teacher, vocabulary_size=0)
        self._own_alignment = self._align(self._own_pairing, Registration(tokenizer_id=own_tokenizer_id))

    def get(self, tokenizer_id: str) -> Alignment:
        """The alignment registered under this id. Raises UnknownTokenizerError where there is none, or no more."""
        if tokenizer_id == self._own_tokenizer_id:
            return self._own_alignment
        alignment = self._kept.alignment(tokenizer_id) or self._own_kept.alignment(tokenizer_id)
        if alignment is None:
            raise UnknownTokenizerError(
                f"{tokenizer_id[:80]!r} is not registered here: register it (again) with RegisterTokenizer. A server "
                f"keeps the {self._limits.max_tokenizers} tokenizers used last (limits.max_tokenizers), and none over "
                "a restart"
            )
        return alignment

    async def register(self, registration: Registration) -> Alignment | None:
        """The alignment; None where the tokenizer is unknown and its JSON was not sent. Raises InvalidTokenizerError
        where it cannot be used, QueueFullError where too many wait."""
        _check(registration)
        registered_id = registration.registered_id
        if registered_id == self._own_tokenizer_id:
            return self._own_alignment
        kept = self._own_kept if registration.tokenizer_id == self._own_tokenizer_id else self._kept
        alignment = kept.alignment(registered_id)
        if alignment is None:
            pairing = await self._pairing_of(registration)
            if pairing is None:
                return None
            alignment = self._align(pairing, registration)
            kept.keep(_key_of(registration), alignment)
        return alignment

    async def close(self) -> None:
        """Ends what is under way."""
        await self._flights.close()

    async def _pairing_of(self, registration: Registration) -> Pairing | None:
        if registration.tokenizer_id == self._own_tokenizer_id:
            if registration.vocabulary_size in (0, self._own_pairing.student.size):
                return self._own_pairing
            return own_pairing(self._teacher, vocabulary_size=registration.vocabulary_size)
        known = self._kept.pairing(_key_of(registration))
        if known is not None or not registration.tokenizer_json:
            return known
        self._check_size(registration)
        # The JSON is part of the key: whether it is what its id says is not known before it was read.
        key = (*_key_of(registration), registration.tokenizer_json, registration.chat_template)
        pairing = await self._flights.join(key, lambda: self._read(registration))
        self._kept.keep_pairing(_key_of(registration), pairing)
        return pairing

    async def _read(self, registration: Registration) -> Pairing:
        started = time.monotonic()
        name = repr(registration.tokenizer_id[:12])
        _log.info("reading tokenizer id=%s bytes=%d", name, len(registration.tokenizer_json))
        try:
            pairing = await self._worker.pair(self._job_of(registration))
        except InvalidTokenizerError as refusal:
            seconds = time.monotonic() - started
            _log.warning("refused tokenizer id=%s reason=%s seconds=%.2f", name, refusal.reason, seconds)
            raise
        seconds = time.monotonic() - started
        _log.info("read tokenizer id=%s relation=%s seconds=%.2f", name, pairing.relation.name, seconds)
        return pairing

    def _job_of(self, registration: Registration) -> PairingJob:
        return PairingJob(
            tokenizer_id=registration.tokenizer_id,
            tokenizer_json=registration.tokenizer_json,
            chat_template=registration.chat_template or None,
            vocabulary_size=registration.vocabulary_size,
            teacher=self._teacher,
            cpu_seconds=math.ceil(self._limits.tokenizer_seconds),
        )

    def _align(self, pairing: Pairing, registration: Registration) -> Alignment:
        return align(
            pairing,
            teacher=self._teacher,
            tokenizer_id=registration.registered_id,
            end_token_ids=registration.end_token_ids,
            teacher_end_ids=registration.teacher_end_token_ids or self._teacher_end_ids,
            special_pairs=registration.special_pairs,
        )

    def _check_size(self, registration: Registration) -> None:
        size, limit = len(registration.tokenizer_json), self._limits.max_tokenizer_bytes
        if size > limit:
            raise InvalidTokenizerError(
                f"has {size:,} bytes, more than this server's limits.max_tokenizer_bytes={limit:,}: raise that, or "
                "leave out what the file does not need",
                reason="TOKENIZER_TOO_LARGE",
            )


def _key_of(registration: Registration) -> PairingKey:
    return registration.tokenizer_id, registration.vocabulary_size


def _check(registration: Registration) -> None:
    """What a request may ask for at all."""
    for name, size, most in (
        ("end_token_ids", len(registration.end_token_ids), MAX_END_TOKENS),
        ("teacher_end_token_ids", len(registration.teacher_end_token_ids), MAX_END_TOKENS),
        ("special_pairs", len(registration.special_pairs), MAX_SPECIAL_PAIRS),
        ("chat_template", len(registration.chat_template or ""), MAX_CHAT_TEMPLATE_CHARACTERS),
        ("vocabulary_size", registration.vocabulary_size, MAX_VOCABULARY_SIZE),
    ):
        if size > most:
            raise InvalidTokenizerError(f"{size:,} is more than {most:,}", reason="TOO_MANY", field=name)
