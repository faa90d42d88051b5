"""Rotary embeddings whose frequencies depend on the longest position of a forward: `longrope`, and NTK's `dynamic`.

transformers chooses them once for a whole forward. A short sequence beside a long one would be computed with the long
one's, so sequences of unlike *regimes* need forwards of their own. `dynamic` also keeps the largest it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Regime = tuple[int, ...]
"""Sequences of equal regimes have equal frequencies."""


@dataclass(frozen=True, slots=True)
class _Rope:
    """One set of frequencies of one module."""

    module: Any  # Any: transformers' rotary modules share no base class
    kind: str
    prefix: str
    """Before the names of its attributes, where each type of layer has frequencies of its own."""
    threshold: int
    """Tokens up to which the frequencies are the model's first ones."""

    def regime(self, num_tokens: int) -> int:
        """Beyond the threshold `longrope` has one other set, `dynamic` another for every length."""
        if num_tokens <= self.threshold:
            return 0
        return 1 if self.kind == "longrope" else num_tokens

    def reset(self) -> None:
        """As it was when the model was loaded. Only `dynamic` keeps anything that matters."""
        if self.kind == "longrope":
            return
        frequencies = getattr(self.module, f"{self.prefix}inv_freq")
        original = getattr(self.module, f"{self.prefix}original_inv_freq").to(frequencies.device)
        self.module.register_buffer(f"{self.prefix}inv_freq", original.clone(), persistent=False)
        setattr(self.module, f"{self.prefix}max_seq_len_cached", self.threshold)


class LengthDependentRope:
    """The rotary embeddings of one model that depend on the length of a forward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._ropes = tuple(rope for module in model.modules() for rope in _ropes_of(module))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._ropes)

    @property
    def thresholds(self) -> tuple[int, ...]:
        """Tokens beyond which something changes, ascending."""
        return tuple(sorted({rope.threshold for rope in self._ropes}))

    def regime(self, num_tokens: int) -> Regime:
        """Of a sequence, its last token included."""
        return tuple(rope.regime(num_tokens) for rope in self._ropes)

    def reset(self) -> None:
        """To be called before each forward, which otherwise depends on those before it."""
        for rope in self._ropes:
            rope.reset()


def _ropes_of(module: Any) -> Iterator[_Rope]:
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, Mapping):
        for layer_type, kind in kinds.items():
            yield from _rope_of(module, kind, f"{layer_type}_", module.config.rope_parameters[layer_type])
    elif isinstance(kinds, str):
        yield from _rope_of(module, kinds, "", getattr(module.config, "rope_parameters", None) or {})


def _rope_of(module: Any, kind: str, prefix: str, parameters: Mapping[str, Any]) -> Iterator[_Rope]:
    if kind == "longrope":
        yield _Rope(module, kind, prefix, int(parameters["original_max_position_embeddings"]))
    elif "dynamic" in kind:
        yield _Rope(module, kind, prefix, int(module.original_max_seq_len))
