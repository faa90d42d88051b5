from __future__ import annotations

import asyncio

import pytest
from preceptor_server.engines.base import Mortal
from preceptor_server.errors import EngineDiedError

from tests.engines.mortal_fake import MortalFakeEngine
from tests.unit.server.groups import group_of, group_of_size

GROUP = group_of([1], [2, 3])


def mortal_engine(*, dies_after: int, seconds_per_token: float = 0.0) -> MortalFakeEngine:
    return MortalFakeEngine(dies_after_groups=dies_after, seconds_per_token=seconds_per_token)


async def test_it_answers_so_many_groups_and_dies_at_the_next_until_it_is_loaded_again() -> None:
    engine = mortal_engine(dies_after=2)
    assert isinstance(engine, Mortal)
    engine.load()
    for _ in range(2):
        watching = asyncio.create_task(engine.wait_until_dead())
        for _ in range(2):
            await engine.score([GROUP])
        assert not watching.done()
        for _ in range(2):
            with pytest.raises(EngineDiedError):
                await engine.score([GROUP])
        await asyncio.wait_for(watching, 5)
        engine.close()
        engine.load()


async def test_what_is_in_flight_dies_with_it_at_once() -> None:
    engine = mortal_engine(dies_after=1, seconds_per_token=10.0)
    engine.load()
    in_flight = asyncio.create_task(engine.score([group_of_size(100)]))
    await asyncio.sleep(0)
    with pytest.raises(EngineDiedError):
        await engine.score([GROUP])
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(in_flight, 5)
