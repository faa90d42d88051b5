"""A real teacher process reads every prompt before the first step, and its template has the last word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from preceptor.wire import PositionStatus
from preceptor_client import TeacherClient
from preceptor_client.errors import InvalidRequestError
from preceptor_client.types import Chat, ChatMessage, Text

from tests.integration.servers import RunningServer, running_server
from tests.integration.trainers import run_training, write_run
from tests.tiny import save_tiny, tiny_llama

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}hi"
"""As Gemma's and Mistral's."""
CONVERSATION = [{"role": "system", "content": "brief"}, {"role": "user", "content": "Say tan"}]


@pytest.fixture(scope="module")
def strict_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = save_tiny(tmp_path_factory.mktemp("strict"), tiny_llama())
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    with running_server(tmp_path_factory.mktemp("server"), "--engine.model", str(folder)) as server:
        yield server


def test_one_bad_line_stops_a_run_by_its_number_and_with_skip_costs_that_line_alone(
    strict_server: RunningServer, tmp_path: Path
) -> None:
    student = save_tiny(tmp_path / "student", tiny_llama(seed=1))
    files = write_run(tmp_path / "files", student=student, address=strict_server.address, num_steps=3)
    train = tmp_path / "files" / "train.jsonl"
    with train.open("a") as lines:
        lines.write(json.dumps({"prompt": "Say tan", "teacher_prompt": CONVERSATION}) + "\n")
    status, output = run_training(files)
    assert status == 1
    assert f"{train}:10: the teacher refuses it: " in output
    assert "no system role; mend it, or set data.on_bad_example=skip to go on without it" in output
    assert "Traceback" not in output
    files.settings.write_text(files.settings.read_text().replace("[data]", '[data]\non_bad_example = "skip"'))
    status, output = run_training(files)
    assert status == 0, output
    assert "warning: 1 bad example(s) left out" in output
    (listed,) = (files.directory / "bad_examples.jsonl").read_text().splitlines()
    assert json.loads(listed)["where"] == f"{train}:10"
    assert [row["num_refused_groups"] for row in files.steps()] == [0, 0, 0]


async def test_prompt_is_read_without_a_forward(strict_server: RunningServer) -> None:
    async with TeacherClient(strict_server.address) as client:
        both = await asyncio.gather(
            *(
                client.score(prompt, [[5, 6]], score_masks=[[False, False]], top_k=4)
                for prompt in (Text("Say tan"), Chat((ChatMessage(role="user", content="Say tan"),)))
            )
        )
        for scores in both:
            assert scores.timings.forward_ms == 0
            assert scores.responses[0].status_T.tolist() == [PositionStatus.EXCLUDED] * 2
            assert scores.responses[0].support_ids_NK.shape == (0, 4)
        chat_with_system = Chat(tuple(ChatMessage(message["role"], message["content"]) for message in CONVERSATION))
        with pytest.raises(InvalidRequestError, match="no system role") as caught:
            await client.score(chat_with_system, [[5]], score_masks=[[False]], top_k=4)
    assert caught.value.field == "prompt.chat.messages"
