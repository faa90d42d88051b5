"""A student's response as bytes: runs of text, and the tokens that stand between them. Pure numpy."""

# T = tokens of a response, U = student's vocabulary size

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_server.alignment.types import Alignment, TokenKind


@dataclass(slots=True, kw_only=True, eq=False)
class StudentText:
    """Where each token of a response lies in the response's bytes, in which tokens without text take no room.

    Text is cut where a token stands alone (it is special, or ends a response), and where the score mask changes: what
    an environment wrote, and what the student wrote after it, were tokenized apart.
    """

    ids_T: TokenArray
    score_mask_T: npt.NDArray[np.bool_]
    alignment: Alignment
    is_text_T: npt.NDArray[np.bool_] = field(init=False)
    starts_T: npt.NDArray[np.int64] = field(init=False)
    """Byte offsets; a token of text covers [starts_T, ends_T), any other covers nothing."""
    ends_T: npt.NDArray[np.int64] = field(init=False)
    data: npt.NDArray[np.uint8] = field(init=False)
    """All bytes."""
    piece_starts: list[int] = field(init=False)
    """The byte offset of each run of text, in order."""

    def __post_init__(self) -> None:
        table = self.alignment.pairing.student
        lengths_T = table.offsets_V1[self.ids_T + 1] - table.offsets_V1[self.ids_T]
        is_text_T = (table.kinds_V[self.ids_T] == TokenKind.TEXT) & (lengths_T > 0)
        is_text_T &= ~np.isin(self.ids_T, self.alignment.student_end_ids)
        lengths_T = np.where(is_text_T, lengths_T, 0)
        self.is_text_T = is_text_T
        self.ends_T = np.cumsum(lengths_T)
        self.starts_T = self.ends_T - lengths_T
        num_bytes = int(self.ends_T[-1])
        places = np.repeat(table.offsets_V1[self.ids_T] - self.starts_T, lengths_T) + np.arange(num_bytes)
        self.data = np.frombuffer(table.blob, np.uint8)[places]
        self.piece_starts = self._cuts()

    @property
    def pieces(self) -> list[bytes]:
        """The runs of text."""
        data = self.data.tobytes()
        stops = [*self.piece_starts[1:], len(data)]
        return [data[start:stop] for start, stop in zip(self.piece_starts, stops, strict=False)]

    def _cuts(self) -> list[int]:
        """The byte offsets at which a piece begins."""
        follows_no_text_T = np.concatenate([[True], ~self.is_text_T[:-1]])
        mask_changes_T = np.concatenate([[False], self.score_mask_T[1:] != self.score_mask_T[:-1]])
        begins_T = self.is_text_T & (follows_no_text_T | mask_changes_T)
        starts: list[int] = self.starts_T[begins_T].tolist()
        return starts
