"""The alignments that a server keeps. Bounded: the pairing used least recently makes room, its alignments with it."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from preceptor_server.alignment.types import Alignment, Pairing

_log = logging.getLogger(__name__)

MAX_ALIGNMENTS_PER_PAIRING = 64

PairingKey = tuple[str, int]
"""The tokenizer's fingerprint, and the student's number of logits."""


@dataclass(slots=True, eq=False)
class _Entry:
    pairing: Pairing
    alignments: OrderedDict[str, Alignment] = field(default_factory=OrderedDict)


class KeptAlignments:
    """Pairings by tokenizer, and alignments by registered id; what is used least recently stands first. For any thread:
    requests that carry text are decoded off the event loop."""

    def __init__(self, *, max_pairings: int) -> None:
        self._lock = threading.Lock()
        self._max_pairings = max_pairings
        self._entries: OrderedDict[PairingKey, _Entry] = OrderedDict()
        self._keys: dict[str, PairingKey] = {}

    def pairing(self, key: PairingKey) -> Pairing | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry.pairing

    def alignment(self, registered_id: str) -> Alignment | None:
        with self._lock:
            key = self._keys.get(registered_id)
            if key is None:
                return None
            self._entries.move_to_end(key)
            alignments = self._entries[key].alignments
            alignments.move_to_end(registered_id)
            return alignments[registered_id]

    def keep_pairing(self, key: PairingKey, pairing: Pairing) -> None:
        with self._lock:
            self._entry(key, pairing)

    def keep(self, key: PairingKey, alignment: Alignment) -> None:
        """An alignment, and the pairing that it was made of."""
        with self._lock:
            entry = self._entry(key, alignment.pairing)
            entry.alignments[alignment.tokenizer_id] = alignment
            self._keys[alignment.tokenizer_id] = key
            if len(entry.alignments) > MAX_ALIGNMENTS_PER_PAIRING:
                registered_id, _ = entry.alignments.popitem(last=False)
                del self._keys[registered_id]

    def _entry(self, key: PairingKey, pairing: Pairing) -> _Entry:
        entry = self._entries.setdefault(key, _Entry(pairing))
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_pairings:
            self._evict()
        return entry

    def _evict(self) -> None:
        (fingerprint, _), entry = self._entries.popitem(last=False)
        for registered_id in entry.alignments:
            del self._keys[registered_id]
        _log.info("evicted tokenizer id=%r num_alignments=%d", fingerprint[:12], len(entry.alignments))
