"""A group whose forward raises, among others: it fails alone, is logged once, and is refused when it comes again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from preceptor_client import TeacherClient, TeacherIds
from preceptor_client.errors import GroupFailedError
from preceptor_client.types import GroupScores

from tests.engines.failing_fake import BAD_TOKEN, FAILING_KIND
from tests.integration.servers import running_server

NUM_GROUPS, NUM_BAD = 64, 3


def response_of(index: int) -> list[int]:
    """Of some groups the first token is the one that the engine cannot bear."""
    return [BAD_TOKEN if index % (NUM_GROUPS // NUM_BAD) == 5 else 100, index, index + 1]


async def test_the_culprits_fail_alone_and_are_refused_at_once_when_they_come_again(tmp_path: Path) -> None:
    settings = ["--engine.kind", FAILING_KIND, "--scheduler.batch-window-ms", "50"]
    with running_server(tmp_path, *settings) as server:
        async with TeacherClient(server.address) as client:

            async def ask(index: int) -> GroupScores | GroupFailedError:
                try:
                    return await client.score(TeacherIds((1, 2)), [response_of(index)], top_k=4)
                except GroupFailedError as error:
                    return error

            answers = await asyncio.gather(*map(ask, range(NUM_GROUPS)))
            bad = [index for index in range(NUM_GROUPS) if response_of(index)[0] == BAD_TOKEN]
            assert len(bad) >= NUM_BAD
            failed = {index: answer for index, answer in enumerate(answers) if isinstance(answer, GroupFailedError)}
            assert sorted(failed) == bad
            for index, answer in enumerate(answers):
                if isinstance(answer, GroupScores):
                    again = await ask(index)
                    assert isinstance(again, GroupScores)
                    np.testing.assert_array_equal(
                        answer.responses[0].sampled_logprobs_N, again.responses[0].sampled_logprobs_N
                    )
                    break
            for error in failed.values():
                assert error.reason == "BAD_GROUP"
                assert server.log.read_text().count(f"incident={error.incident}") == 1
            with pytest.raises(GroupFailedError, match="the model failed for this group before") as caught:
                await client.score(TeacherIds((1, 2)), [response_of(bad[0])], top_k=4)
            assert caught.value.incident == failed[bad[0]].incident
        # Whatever the culprits were in one batch with, their traceback stands in the log once each.
        assert server.log.read_text().count("FloatingPointError: the marked token") <= len(bad)
        assert server.stop() == 0
