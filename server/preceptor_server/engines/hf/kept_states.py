"""Keys and values of one sequence's tokens, of every attention layer, kept from one forward to the next.

Layers are told apart by the order of their calls, which every forward of a model repeats. Knows nothing of groups.
"""

# G = key/value heads, A = kept tokens, L = tokens of a segment, D = head size

from __future__ import annotations

import torch


class KeptLayer:
    """Of one attention layer: buffers for as many tokens as will ever be kept."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, *, capacity: int) -> None:
        """Like `key` and `value`, [1, G, any, D]."""
        self._key = key.new_empty(1, key.shape[1], capacity, key.shape[3])
        self._value = value.new_empty(1, value.shape[1], capacity, value.shape[3])

    def keep(self, key: torch.Tensor, value: torch.Tensor, *, after: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [1, G, L, D] after the first `after` tokens, over what stood there; returns them behind these, views
        of [1, G, A + L, D]."""
        stop = after + key.shape[2]
        self._key[:, :, after:stop] = key
        self._value[:, :, after:stop] = value
        return self._key[:, :, :stop], self._value[:, :, :stop]

    def before(self, key: torch.Tensor, value: torch.Tensor, *, num_kept: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `num_kept` tokens, then [1, G, L, D]; keeps nothing."""
        keys = torch.cat([self._key[:, :, :num_kept], key], dim=2)
        return keys, torch.cat([self._value[:, :, :num_kept], value], dim=2)

    @property
    def num_bytes(self) -> int:
        return self._key.untyped_storage().nbytes() + self._value.untyped_storage().nbytes()


class KeptStates:
    """Of all attention layers of one model, for at most `capacity` tokens."""

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._layers: list[KeptLayer] = []
        self._num_called = 0

    def begin_forward(self) -> None:
        """The next layer is the first one again."""
        self._num_called = 0

    def next_layer(self, key: torch.Tensor, value: torch.Tensor) -> KeptLayer:
        """Of the layer that attends now; `key` and `value` say what it keeps."""
        if self._num_called == len(self._layers):
            self._layers.append(KeptLayer(key, value, capacity=self._capacity))
        self._num_called += 1
        return self._layers[self._num_called - 1]

    @property
    def num_bytes(self) -> int:
        """That it holds."""
        return sum(layer.num_bytes for layer in self._layers)
