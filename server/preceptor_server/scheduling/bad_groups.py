"""Groups that made the model fail: remembered for a while by what they hold, and refused when they come again."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preceptor_server.errors import BadGroupError
from preceptor_server.scheduling.costs import bytes_of
from preceptor_server.types import ScoreGroup

_MAX_GROUPS = 1024
_SMALL_BYTES = 256 * 1024
"""What is digested on the event loop: a fraction of a millisecond."""

_Shape = tuple[int, int, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bad:
    shape: _Shape
    incident: str
    reason: str
    forget_at: float


class BadGroups:
    """By digest of the group and the revision of the weights. Times are those of the event loop's clock."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._bad: OrderedDict[bytes, _Bad] = OrderedDict()
        """The oldest first."""
        self._shapes: Counter[_Shape] = Counter()
        """A group of another shape need not be digested."""

    def __len__(self) -> int:
        return len(self._bad)

    async def check(self, group: ScoreGroup, *, revision: str, now: float) -> None:
        """Raises BadGroupError for one that is remembered."""
        self._forget_old(now)
        if not self._bad or _shape_of(group) not in self._shapes:
            return
        bad = self._bad.get(await _digest(group, revision))
        if bad is not None:
            raise BadGroupError(
                f"the model failed for this group before (incident {bad.incident} in the server's log): it is refused "
                f"for {max(0.0, bad.forget_at - now):.0f} s",
                incident=bad.incident,
                reason=bad.reason,
            )

    async def remember(self, group: ScoreGroup, *, revision: str, incident: str, reason: str, now: float) -> None:
        """Refuses it from now on."""
        if not self._seconds:
            return
        digest = await _digest(group, revision)
        self._forget(digest)
        shape = _shape_of(group)
        self._bad[digest] = _Bad(shape=shape, incident=incident, reason=reason, forget_at=now + self._seconds)
        self._shapes[shape] += 1
        if len(self._bad) > _MAX_GROUPS:
            self._forget(next(iter(self._bad)))

    def _forget_old(self, now: float) -> None:
        while self._bad and (first := next(iter(self._bad.items())))[1].forget_at <= now:
            self._forget(first[0])

    def _forget(self, digest: bytes) -> None:
        bad = self._bad.pop(digest, None)
        if bad is None:
            return
        self._shapes[bad.shape] -= 1
        if not self._shapes[bad.shape]:
            del self._shapes[bad.shape]


def _shape_of(group: ScoreGroup) -> _Shape:
    return group.num_tokens, len(group.responses), group.top_k, group.adapter


async def _digest(group: ScoreGroup, revision: str) -> bytes:
    if bytes_of(group) <= _SMALL_BYTES:
        return digest_of(group, revision)
    return await asyncio.to_thread(digest_of, group, revision)


def digest_of(group: ScoreGroup, revision: str) -> bytes:
    """Of all that decides what the engine computes."""
    settings = (revision, group.adapter, group.top_k, group.temperature, group.batch_invariant, len(group.responses))
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    arrays: list[npt.NDArray[np.generic]] = [group.prompt_ids_P]
    for response in group.responses:
        arrays += [response.ids_T, response.score_mask_T]
        if response.candidate_ids_TC is not None:
            arrays.append(response.candidate_ids_TC)
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.digest()
