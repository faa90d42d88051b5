"""Finds by trying which ways of running a batch give the results of running each text alone.

Padding, a prefix that prompts share, windows, chunks, recurrent states, caches and ropes each break some families, and
some only past a length that their settings name. So each way is tried with short texts, and again with texts as long as
the longest that is asked for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from transformers import PreTrainedModel

from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.head import Head
from preceptor_client.train.student.probe import SHORTEST, Probe
from preceptor_client.train.student.writing import WRITINGS, Together, Writing

_log = logging.getLogger(__name__)


class Training(StrEnum):
    """Ways of computing the states of several sequences, the quickest first."""

    FLAT = "without padding"
    PADDED = "padded"
    ALONE = "one at a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """The quickest ways that are exact."""

    writing: Writing
    training: Training

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is slow about them, for the user."""
        found = []
        if self.writing.together in (Together.ONE_LENGTH, Together.ALONE) or not self.writing.caches:
            found.append(
                f"the student answers prompts {self.writing}: other ways of answering a batch change its numbers"
            )
        if self.training is Training.ALONE:
            found.append("the student is trained on one response at a time: padding changes its numbers")
        return tuple(found)


class KnownWays(Protocol):
    """Says how to run a batch."""

    def up_to(self, length: int, /) -> Ways:
        """For batches whose texts, responses included, have at most this many tokens. Raises InvalidStudentError."""
        ...

    def constant_up_to(self, length: int, /) -> int | None:
        """The length beyond which the model computes all tokens otherwise, if that is below `length` (ropes of the
        types longrope and dynamic)."""
        ...


@dataclass(frozen=True, slots=True)
class FixedWays:
    """The same ways for all lengths, untried: to compare ways with each other."""

    ways: Ways

    def up_to(self, _: int, /) -> Ways:
        return self.ways

    def constant_up_to(self, _: int, /) -> int | None:
        return None


class ExactWays:
    """Knows the exact ways for texts up to the longest that was asked for, and tries them again beyond it."""

    def __init__(self, model: PreTrainedModel, *, head: Head, pad_token_id: int, max_length: int) -> None:
        """Tries short texts at once; `max_length` is the longest text that the model's positions cover. Raises
        InvalidStudentError for a model that no way fits."""
        self._model = model
        self._head = head
        self._pad_token_id = pad_token_id
        self._max_length = max_length
        self._lengths: list[int] = []
        self._constant_up_to = 0
        self._ways = Ways(writing=WRITINGS[0], training=Training.FLAT)
        self._try(SHORTEST)

    def up_to(self, length: int, /) -> Ways:
        if length > self._max_length:
            raise InvalidStudentError(
                f"student.model: a text of {length} tokens does not fit the student's context of {self._max_length}: "
                "shorten the prompt, or lower rollout.max_new_tokens or evaluation.max_new_tokens"
            )
        if length > self._lengths[-1]:
            if limit := self.constant_up_to(length):
                raise InvalidStudentError(
                    f"student.model: {type(self._model).__name__} computes all tokens of a text otherwise once it has "
                    f"more than {limit} tokens, so that a response would change while it is written: keep prompt and "
                    "response within them (rollout.max_new_tokens, evaluation.max_new_tokens)"
                )
            self._try(length)
        return self._ways

    def constant_up_to(self, length: int, /) -> int | None:
        length = min(length, self._max_length)
        if length <= max(SHORTEST, self._constant_up_to):
            return None
        limit = self._probe(length).length_that_changes_all()
        self._constant_up_to = length if limit is None else limit
        return limit

    def _try(self, length: int) -> None:
        """Keeps the ways that were found for shorter texts where they fit these too."""
        probe = self._probe(length)
        if length == SHORTEST and probe.length_that_changes_all() is not None:
            raise InvalidStudentError(
                f"student.model: {type(self._model).__name__} lets tokens see those after them, and a student writes "
                "one token after the other: take a causal model (of some families config.json says is_decoder=true)"
            )
        found = Ways(writing=self._writing(probe), training=self._training(probe))
        self._lengths.append(length)
        self._ways = found
        _log.info("student's batches: writing=%r training=%r up_to=%d", str(found.writing), str(found.training), length)

    def _writing(self, probe: Probe) -> Writing:
        for writing in WRITINGS[WRITINGS.index(self._ways.writing) :]:
            is_known = writing == self._ways.writing and self._lengths
            shorter = [] if is_known else [self._probe(length) for length in self._lengths]
            if all(one.can_write(writing) for one in (probe, *shorter)):
                return writing
        raise InvalidStudentError(
            f"student.model: what {type(self._model).__name__} says while it writes is not what it says of the "
            "written text, not even for one prompt without a cache: it cannot be a student"
        )

    def _training(self, probe: Probe) -> Training:
        before = self._ways.training
        if before is Training.FLAT and probe.can_run_flat():
            return Training.FLAT
        shorter = [] if before is Training.PADDED else [self._probe(length) for length in self._lengths]
        if before is not Training.ALONE and all(one.can_run_padded() for one in (probe, *shorter)):
            return Training.PADDED
        return Training.ALONE

    def _probe(self, length: int) -> Probe:
        return Probe(self._model, head=self._head, pad_token_id=self._pad_token_id, length=max(length, SHORTEST))
