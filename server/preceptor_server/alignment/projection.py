"""Turns a teacher's columns into the student's vocabulary. Pure numpy; knows nothing of text.

Every quantity is a mass of the teacher's distribution at one row. A row's entries are its likeliest tokens and its own
next token; each lands on one student token, or on none. Masses that land together are added, what lands nowhere
joins the tail, and nothing is lost: support and tail sum to 1.

The student's token may reach beyond the teacher's next one, or end inside it. Then what counts is the way that the
teacher took over those bytes: the product of its probabilities is moved from where its next token lands to the
student's token.
"""

# T = tokens of a response (the student's), M = tokens that the teacher read for it, N = positions scored,
# J = teacher's tokens per row, E = entries of a row (J + 2), X = merged tokens of the teacher, K = support size,
# C = candidates that the caller names per position

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import LogprobArray, PackedTokenArray, PositionStatus, StatusArray, TokenArray

from preceptor_server.alignment.candidates import (
    are_among,
    counterpart_logprobs,
    gathered_logprobs,
    merged_teacher_ids,
    slices_of_rows,
)
from preceptor_server.alignment.masses import less, sum_equal_neighbours
from preceptor_server.alignment.reading import Conversion, Reading, convert
from preceptor_server.alignment.types import END, IMPOSSIBLE, Alignment
from preceptor_server.types import ResponseColumns

_Float = npt.NDArray[np.float64]
_NO_ID = -1
"""In place of a token that stands in its row already."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projected:
    """The columns of one response in the student's vocabulary."""

    columns: ResponseColumns
    rows_N: npt.NDArray[np.int64]
    """For each row of the columns, the teacher token before which the teacher was asked."""
    unmapped_mass: float
    """Mean mass of entries that have no place in the student's vocabulary; it is part of the tail."""


def num_teacher_tokens(alignment: Alignment, *, top_k: int, merges_end_tokens: bool) -> int:
    """How many of its likeliest tokens to ask the teacher for, so that K of the student's remain."""
    if not alignment.pairing.relation.is_one_to_one:
        return 2 * top_k
    return top_k + len(merged_teacher_ids(alignment, merges_end_tokens=merges_end_tokens))


def project(
    columns: ResponseColumns,
    reading: Reading,
    alignment: Alignment,
    *,
    top_k: int,
    merges_end_tokens: bool,
    candidate_ids_TC: PackedTokenArray | None = None,
) -> Projected:
    """`columns` are the engine's for `reading.teacher_ids_M`; the answer's are for the student's response, whose
    candidates are `candidate_ids_TC`. The columns' own candidates are those of `teacher_candidates`, where any are."""
    row_of_M = np.cumsum(columns.status_T == PositionStatus.OK) - 1
    is_finite_N = _paths_are_finite(columns.status_T, reading)
    status_T = reading.status_T.copy()
    status_T[reading.positions_N[~is_finite_N]] = PositionStatus.NON_FINITE
    asked = _Asked(
        reading,
        columns,
        alignment,
        is_kept_N=is_finite_N,
        row_of_M=row_of_M,
        merges=merges_end_tokens,
        candidate_ids_TC=candidate_ids_TC,
    )
    support = asked.mapped(top_k) or asked.gathered(top_k)
    # A row of which nothing has a place says nothing to the student.
    has_place_N = support.logprobs_NK[:, 0] > -np.inf
    status_T[np.flatnonzero(status_T == PositionStatus.OK)[~has_place_N]] = PositionStatus.UNMAPPED
    unmapped_N = support.unmapped_mass_N[has_place_N]
    candidates_NC, entropies_N = support.candidate_logprobs_NC, columns.entropies_N
    return Projected(
        columns=ResponseColumns(
            status_T=status_T,
            support_ids_NK=support.ids_NK[has_place_N].astype(np.int64),
            support_logprobs_NK=support.logprobs_NK[has_place_N].astype(np.float32),
            sampled_logprobs_N=support.sampled_logprobs_N[has_place_N].astype(np.float32),
            log_tail_mass_N=support.log_tail_mass_N[has_place_N].astype(np.float32),
            entropies_N=None if entropies_N is None else entropies_N[asked.taken_N[has_place_N]],
            candidate_logprobs_NC=None if candidates_NC is None else _rows_of(candidates_NC, has_place_N),
        ),
        rows_N=asked.rows_N[has_place_N],
        unmapped_mass=float(unmapped_N.mean()) if len(unmapped_N) else 0.0,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Support:
    """A projected support and what goes with it."""

    ids_NK: npt.NDArray[np.integer]
    logprobs_NK: npt.NDArray[np.floating]
    sampled_logprobs_N: npt.NDArray[np.floating]
    log_tail_mass_N: npt.NDArray[np.floating]
    unmapped_mass_N: npt.NDArray[np.floating]
    candidate_logprobs_NC: LogprobArray | None


class _Asked:
    """The rows that answer for a response's positions, and where their tokens land."""

    def __init__(
        self,
        reading: Reading,
        columns: ResponseColumns,
        alignment: Alignment,
        *,
        is_kept_N: npt.NDArray[np.bool_],
        row_of_M: npt.NDArray[np.int64],
        merges: bool,
        candidate_ids_TC: PackedTokenArray | None,
    ) -> None:
        self.rows_N = reading.rows_N[is_kept_N]
        self.taken_N = row_of_M[self.rows_N]
        self._columns = columns
        self._path_lengths_N = (reading.path_ends_N - reading.rows_N)[is_kept_N]
        self._conversions_N = reading.conversions_N[is_kept_N]
        self._sampled_ids_N = reading.sampled_ids_N[is_kept_N]
        self._next_ids_N = reading.teacher_ids_M[self.rows_N]
        self._alignment = alignment
        self._merges = merges
        self._candidate_ids_TC = candidate_ids_TC
        self._positions_N = reading.positions_N[is_kept_N]
        self._merged_ids_X = merged_teacher_ids(alignment, merges_end_tokens=merges)
        self._ids_NJ = columns.support_ids_NK[self.taken_N]
        self._logprobs_NJ = columns.support_logprobs_NK[self.taken_N]
        self._tail_N = np.exp(columns.log_tail_mass_N[self.taken_N].astype(np.float64))
        self._places_NJ = self._places_of(self._ids_NJ)
        self._next_places_N = self._places_of(self._next_ids_N)
        self._list_merged_tokens()

    def mapped(self, top_k: int) -> _Support | None:
        """The teacher's rows under the student's ids, bit for bit; None where masses have to be moved."""
        is_plain = (
            self._ids_NJ.shape[1] == top_k
            and not len(self._merged_ids_X)
            and self._alignment.pairing.relation.is_one_to_one
            and bool((self._places_NJ >= 0).all())
            and bool((self._next_places_N == self._sampled_ids_N).all())
        )
        if not is_plain:
            return None
        return _Support(
            ids_NK=self._places_NJ,
            logprobs_NK=self._logprobs_NJ,
            sampled_logprobs_N=self._columns.sampled_logprobs_N[self.taken_N],
            log_tail_mass_N=self._columns.log_tail_mass_N[self.taken_N],
            unmapped_mass_N=np.zeros(len(self.taken_N)),
            candidate_logprobs_NC=self._candidate_logprobs(),
        )

    def gathered(self, top_k: int) -> _Support:
        """Masses added where they land, the K largest kept."""
        logprobs_NE, tail_N = self._entries()
        places_NE = np.concatenate(
            [self._places_NJ, self._next_places_N[:, None], self._sampled_ids_N[:, None]], axis=1, dtype=np.int64
        )
        order_NE = np.argsort(places_NE, axis=1, kind="stable")
        places_NE = np.take_along_axis(places_NE, order_NE, axis=1)
        sums_NE = sum_equal_neighbours(places_NE, np.take_along_axis(logprobs_NE, order_NE, axis=1))
        has_place_NE = places_NE >= 0
        unmapped_N = np.exp(np.where(has_place_NE, -np.inf, sums_NE)).sum(axis=1)
        sums_NE[~has_place_NE] = -np.inf
        candidates_NC = self._candidate_logprobs(places_NE=places_NE, sums_NE=sums_NE)
        is_sampled_NE = places_NE == self._sampled_ids_N[:, None]
        # Stable, over ids in ascending order: so equal masses stay in it.
        order_NE = np.argsort(-sums_NE, axis=1, kind="stable")
        sorted_NE = np.take_along_axis(sums_NE, order_NE, axis=1)
        ids_NK = np.take_along_axis(places_NE, order_NE[:, :top_k], axis=1)
        ids_NK = np.where(sorted_NE[:, :top_k] > -np.inf, ids_NK, ids_NK[:, :1])
        tail_N = tail_N + unmapped_N + np.exp(sorted_NE[:, top_k:]).sum(axis=1)
        with np.errstate(divide="ignore"):
            log_tail_N = np.log(tail_N)
        return _Support(
            ids_NK=ids_NK,
            logprobs_NK=sorted_NE[:, :top_k],
            sampled_logprobs_N=np.where(is_sampled_NE, sums_NE, -np.inf).max(axis=1, initial=-np.inf),
            log_tail_mass_N=log_tail_N,
            unmapped_mass_N=unmapped_N,
            candidate_logprobs_NC=candidates_NC,
        )

    def _list_merged_tokens(self) -> None:
        """Puts the merged tokens, which the engine was asked for, beside those that it listed by itself."""
        merged_X, logprobs_NC = self._merged_ids_X, self._columns.candidate_logprobs_NC
        if not len(merged_X) or logprobs_NC is None:
            return
        is_listed_NX = are_among(merged_X, self._ids_NJ)
        logprobs_NX = np.where(is_listed_NX, np.float32(-np.inf), logprobs_NC[self.taken_N, -len(merged_X) :])
        places_NX = self._places_of(np.broadcast_to(merged_X, is_listed_NX.shape))
        self._ids_NJ = np.concatenate([self._ids_NJ, np.where(is_listed_NX, _NO_ID, merged_X)], axis=1)
        self._logprobs_NJ = np.concatenate([self._logprobs_NJ, logprobs_NX], axis=1)
        self._places_NJ = np.concatenate([self._places_NJ, places_NX], axis=1)
        self._tail_N = np.maximum(self._tail_N - np.exp(logprobs_NX.astype(np.float64)).sum(axis=1), 0.0)

    def _candidate_logprobs(
        self, *, places_NE: TokenArray | None = None, sums_NE: _Float | None = None
    ) -> LogprobArray | None:
        """Of the candidates, [N, C]: their counterparts' own, and sums of masses that were moved to `places_NE`."""
        named_TC, answered_NC = self._candidate_ids_TC, self._columns.candidate_logprobs_NC
        if named_TC is None:
            return None
        assert answered_NC is not None, "the engine is asked for what the caller named"
        num_named = named_TC.shape[1]
        logprobs_NC = np.empty((len(self.taken_N), num_named), np.float32)
        for rows in slices_of_rows(len(logprobs_NC)):
            named_RC = named_TC[self._positions_N[rows]]
            logprobs_RC = counterpart_logprobs(
                answered_NC[self.taken_N[rows], :num_named], named_RC, self._alignment, merges_end_tokens=self._merges
            )
            if places_NE is not None and sums_NE is not None:
                logprobs_RC = gathered_logprobs(logprobs_RC, named_RC, places_NE=places_NE[rows], sums_NE=sums_NE[rows])
            logprobs_NC[rows] = logprobs_RC
        return logprobs_NC

    def _entries(self) -> tuple[_Float, _Float]:
        """Logprobs of each row's tokens, its next token where it is not one of them, and the student's own token by
        the way that the teacher took, [N, E]; and the mass outside all of them, [N]."""
        logprobs_NJ = self._logprobs_NJ.astype(np.float64)
        next_N = self._columns.sampled_logprobs_N[self.taken_N].astype(np.float64)
        tail_N = self._tail_N
        path_N = self._path_logprobs()
        is_next_NJ = self._ids_NJ == self._next_ids_N[:, None]
        is_listed_N = is_next_NJ.any(axis=1)
        tail_N = np.where(is_listed_N, tail_N, np.maximum(tail_N - np.exp(next_N), 0.0))
        next_N = np.where(is_listed_N, -np.inf, next_N)
        self._leave_out_what_begins_without_space(logprobs_NJ, next_N, tail_N, path_N)
        # What goes to the student's token by its path leaves the place of the next token.
        path_N[self._next_places_N == self._sampled_ids_N] = -np.inf
        logprobs_NJ[is_next_NJ] = less(logprobs_NJ[is_next_NJ], path_N[is_listed_N])
        next_N = less(next_N, np.where(is_listed_N, -np.inf, path_N))
        return np.concatenate([logprobs_NJ, next_N[:, None], path_N[:, None]], axis=1), tail_N

    def _path_logprobs(self) -> _Float:
        """Log of the product of the teacher's probabilities along each path, [N]."""
        logprobs = np.append(self._columns.sampled_logprobs_N.astype(np.float64), 0.0)
        ranges = np.stack([self.taken_N, self.taken_N + self._path_lengths_N], axis=1).ravel()
        return np.add.reduceat(logprobs, ranges)[::2] if len(ranges) else np.zeros(0)

    def _leave_out_what_begins_without_space(
        self, logprobs_NJ: _Float, next_N: _Float, tail_N: _Float, path_N: _Float
    ) -> None:
        """Where the student wrote the space already, only tokens that begin with it are possible, and share all mass
        with a tail of which it is not known."""
        rows = np.flatnonzero(self._conversions_N == Conversion.WITHOUT_SPACE)
        if not len(rows):
            return
        begins_RJ = self._alignment.pairing.without_space_V[self._ids_NJ[rows]] != IMPOSSIBLE
        begins_RJ |= self._ids_NJ[rows] == self._next_ids_N[rows, None]
        logprobs_RJ = np.where(begins_RJ, logprobs_NJ[rows], -np.inf)
        with np.errstate(divide="ignore"):
            log_tail_R = np.log(tail_N[rows])
        log_mass_R = np.logaddexp.reduce(
            np.concatenate([logprobs_RJ, next_N[rows, None], log_tail_R[:, None]], axis=1), axis=1
        )
        # Where the teacher holds the space itself for impossible, nothing follows from it.
        is_nothing_R = np.isneginf(log_mass_R)
        log_mass_R[is_nothing_R] = 0.0
        logprobs_NJ[rows] = logprobs_RJ - log_mass_R[:, None]
        next_N[rows] -= log_mass_R
        path_N[rows] -= log_mass_R
        tail_N[rows] = np.where(is_nothing_R, 1.0, np.exp(log_tail_R - log_mass_R))

    def _places_of(self, teacher_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """As `convert`, with each row's own end token for END: the one that the student wrote there, else its first."""
        places = convert(self._alignment, teacher_ids, self._conversions_N, merges_end_tokens=self._merges)
        ends = self._alignment.student_end_ids
        if self._merges and ends:
            own_N = np.where(np.isin(self._sampled_ids_N, ends), self._sampled_ids_N, ends[0])
            own = own_N[:, None] if places.ndim > 1 else own_N
            places = np.where(places == END, own, places).astype(np.int32)
        return places


def _rows_of(column_NC: LogprobArray, is_kept_N: npt.NDArray[np.bool_]) -> LogprobArray:
    """No copy where all are kept."""
    return column_NC if is_kept_N.all() else column_NC[is_kept_N]


def _paths_are_finite(status_M: StatusArray, reading: Reading) -> npt.NDArray[np.bool_]:
    """Whether the engine answered at every token of each path, [N]."""
    num_answered = np.concatenate([[0], np.cumsum(status_M == PositionStatus.OK)])
    lengths_N = reading.path_ends_N - reading.rows_N
    is_finite_N: npt.NDArray[np.bool_] = num_answered[reading.path_ends_N] - num_answered[reading.rows_N] == lengths_N
    return is_finite_N
