"""The search for the groups that make a batch fail: halves of it are computed until each group has its verdict.

Where the model fails for everything, the search would cost a forward per group for every batch: after some batches in a
row that failed wholly, a batch is halved once only, until something succeeds again. Knows no engine and no queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preceptor_server.scheduling.job import Job

FAILED_BATCHES_TO_SUSPECT = 3
"""Batches that failed wholly, in a row, until it is the model that is suspected, and not the groups."""


class Suspicion:
    """Whether the model itself seems to fail."""

    def __init__(self) -> None:
        self._num_failed = 0

    @property
    def is_raised(self) -> bool:
        return self._num_failed >= FAILED_BATCHES_TO_SUSPECT

    def batch_failed_wholly(self) -> None:
        self._num_failed += 1

    def something_succeeded(self) -> None:
        self._num_failed = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a failed batch after one more of its parts was computed."""

    parts: tuple[Sequence[Job], ...] = ()
    """To compute next."""
    culprits: tuple[tuple[Job, Exception], ...] = ()
    """Groups that fail by themselves, beside others that do not, or while the model is not suspected."""
    given_up: tuple[tuple[Job, Exception], ...] = ()
    """Groups of a batch of which everything fails while the model is suspected."""


_NOTHING = Verdict()


class Lineage:
    """A batch that failed, and the parts of it that are computed since. Each call but the first reports one part."""

    def __init__(self, error: Exception, *, is_probe: bool) -> None:
        """`error` that the whole batch raised. A probe is halved once, and no further unless a half succeeds."""
        self.error = error
        self.cost = 0.0
        """Of the parts computed so far; whoever computes them adds it up."""
        self.culprits: list[Job] = []
        self.has_success = False
        self.is_concluded = False
        """Whoever acts on the verdicts has drawn up the account."""
        self._is_probe = is_probe
        self._num_pending = 0
        self._failed: list[tuple[Sequence[Job], Exception]] = []

    @property
    def is_decided(self) -> bool:
        """Whether every group has its verdict."""
        return not self._num_pending and not self._failed

    def begin(self, jobs: Sequence[Job]) -> Verdict:
        """The whole batch has failed."""
        if len(jobs) > 1:
            return Verdict(parts=self._halves(jobs))
        self._failed.append((jobs, self.error))
        return self._decide()

    def succeeded(self) -> Verdict:
        """A part was answered."""
        self._num_pending -= 1
        self.has_success = True
        return self._decide()

    def failed(self, jobs: Sequence[Job], error: Exception) -> Verdict:
        """A part failed."""
        self._num_pending -= 1
        self._failed.append((jobs, error))
        return self._decide()

    def dropped(self) -> Verdict:
        """Nobody waits for a part any more, or it failed for a reason that says nothing of its groups."""
        self._num_pending -= 1
        return self._decide()

    def divided(self, jobs: Sequence[Job]) -> Verdict:
        """A part was too large for the memory: its halves take its place."""
        self._num_pending -= 1
        return Verdict(parts=self._halves(jobs))

    def _halves(self, jobs: Sequence[Job]) -> tuple[Sequence[Job], ...]:
        middle = len(jobs) // 2
        self._num_pending += 2
        return jobs[:middle], jobs[middle:]

    def _decide(self) -> Verdict:
        if not self._failed:
            return _NOTHING
        if self._is_probe and not self.has_success:
            if self._num_pending:
                return _NOTHING
            given_up = tuple((job, error) for jobs, error in self._failed for job in jobs)
            self._failed.clear()
            return Verdict(given_up=given_up)
        parts: list[Sequence[Job]] = []
        culprits: list[tuple[Job, Exception]] = []
        for jobs, error in self._failed:
            if len(jobs) > 1:
                parts += self._halves(jobs)
            else:
                culprits.append((jobs[0], error))
        self._failed.clear()
        self.culprits += [job for job, _ in culprits]
        return Verdict(parts=tuple(parts), culprits=tuple(culprits))
