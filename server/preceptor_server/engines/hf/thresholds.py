"""Lengths at which a model's config says that it computes something else: windows, chunks, rotary embeddings.

A test with shorter sequences than these proves nothing of what comes after them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PretrainedConfig

from preceptor_server.engines.hf.rope import LengthDependentRope

_NAMES = re.compile(r"window|chunk|original_max_position_embeddings|floor_scale|local_attn|attention_span")
"""Names of settings that count tokens beyond which attention changes, in the configs of transformers."""


def thresholds_of(config: PretrainedConfig, *, rope: LengthDependentRope) -> dict[str, int]:
    """Tokens, by the name of the setting; those that are riskiest first: what all positions of a forward share, then
    the shortest."""
    found = dict(_numbers(config.get_text_config().to_dict()))
    ropes = {f"rope threshold {tokens}": tokens for tokens in rope.thresholds}
    others = {name: tokens for name, tokens in found.items() if tokens not in ropes.values()}
    return ropes | dict(sorted(others.items(), key=lambda item: item[1]))


def _numbers(settings: Mapping[Any, Any]) -> Iterator[tuple[str, int]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif _NAMES.search(str(name)) and isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield name, value
