"""Plays an environment by hand, as its thread would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import (
    CheckedTurn,
    Environment,
    checked_messages,
    checked_turn,
)
from preceptor_client.types import ChatMessage


def play(
    environment: Environment, example: Example, texts: Sequence[str]
) -> tuple[tuple[ChatMessage, ...], list[CheckedTurn]]:
    """The opening, and the answer to each text; checked as an engine checks them. Closes it."""

    async def playing() -> tuple[tuple[ChatMessage, ...], list[CheckedTurn]]:
        opening = checked_messages(await environment.reset(example), of="reset()")
        turns = [checked_turn(await environment.step(text), of="step()") for text in texts]
        close = getattr(environment, "close", None)
        if close is not None:
            await close()
        return opening, turns

    return asyncio.run(playing())
