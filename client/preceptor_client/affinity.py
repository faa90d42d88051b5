"""Which replica a prompt prefers: groups that begin alike go to the same one, whose prefix cache then knows them.

Rendezvous hashing (Thaler and Ravishankar, 1998): each pair of prompt and address has a number, the largest wins. Every
client finds the same order without being told, and an address that goes away moves its own prompts alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from preceptor_client.request import GroupRequest
from preceptor_client.types import Chat, Text

NUM_PREFIX_TOKENS = 256
"""Ids by which a prompt is known. A conversation that grows keeps its replica once it is as long."""
NUM_PREFIX_CHARACTERS = 1024
"""The same for text, at four characters a token."""


def prefix_of(group: GroupRequest) -> bytes:
    """The beginning of the group's prompt, by which its replica is chosen."""
    if group.prompt_ids_P is not None:
        return group.prompt_ids_P[:NUM_PREFIX_TOKENS].astype(np.dtype("<i8")).tobytes()
    match group.prompt:
        case Text(text=text):
            beginning = text
        case Chat(messages=messages):
            beginning = "\0".join(f"{message.role}\0{message.content}" for message in messages)
        case _:
            raise AssertionError("prompts in ids have prompt_ids_P")
    return beginning[:NUM_PREFIX_CHARACTERS].encode("utf-8", "surrogatepass")


def rendezvous_order(prefix: bytes, addresses: Iterable[str]) -> list[str]:
    """The addresses, the preferred one first."""
    return sorted(addresses, key=lambda address: hashlib.blake2b(address.encode() + b"\0" + prefix).digest())
