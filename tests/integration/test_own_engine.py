"""What docs/engines.md tells people to write, written into files and served, as they would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from preceptor.wire import LogprobDtype
from preceptor_client import TeacherClient, TeacherIds

from tests.integration.servers import REPOSITORY, run_server_to_its_end, running_server

PAGE = (REPOSITORY / "docs/engines.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the files of the page, named by their first lines."""
    blocks = re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in blocks] == ["zipf.py", "teacher.toml"]
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    return tmp_path


def command() -> list[str]:
    [arguments] = re.findall(r"^\$ preceptor-server (.*)$", PAGE, re.MULTILINE)
    return shlex.split(arguments)


async def test_the_documented_engine_serves_what_it_says(folder: Path) -> None:
    with running_server(folder / "server", *command(), cwd=folder) as server:
        async with TeacherClient(server.address) as client:
            [teacher] = (await client.info()).teachers
            scores = await client.score(
                TeacherIds([7]), [[3, 0], [999]], top_k=4, temperature=2.0, logprob_dtype=LogprobDtype.F32
            )
    assert (teacher.engine, teacher.vocabulary_size, teacher.max_model_len) == ("zipf", 1000, 512)
    # 1 / rank ** 1.5 at temperature 2 is 1 / rank ** 0.75.
    weights_V = np.arange(1, 1001) ** -0.75
    logprobs_V = np.log(weights_V / weights_V.sum())
    first, second = scores.responses
    np.testing.assert_allclose(first.sampled_logprobs_N, logprobs_V[[3, 0]], rtol=1e-6)
    np.testing.assert_allclose(second.sampled_logprobs_N, logprobs_V[[999]], rtol=1e-6)
    np.testing.assert_array_equal(first.support_ids_NK, [[0, 1, 2, 3]] * 2)
    np.testing.assert_allclose(first.support_logprobs_NK, [logprobs_V[:4]] * 2, rtol=1e-6)
    np.testing.assert_allclose(first.log_tail_mass_N, np.log(1 - np.exp(logprobs_V[:4]).sum()), rtol=1e-6)


async def test_the_documented_engine_takes_its_vocabulary_from_a_tokenizer(folder: Path, tiny_folder: Path) -> None:
    with running_server(folder / "server", *command(), "--engine.tokenizer", str(tiny_folder), cwd=folder) as server:
        async with TeacherClient(server.address) as client:
            [teacher] = (await client.info()).teachers
    assert teacher.vocabulary_size == 259


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--engine.kind", "zpif:Zipf"], "engine.kind='zpif:Zipf': there is no module 'zpif' in "),
        (
            ["--engine.options", '{"exponents": 2}'],
            "engine.options.exponents: Zipf has no such option; it has: exponent",
        ),
    ],
)
def test_what_is_wrong_with_it_is_told_in_one_line_before_anything_is_loaded(
    arguments: list[str], told: str, folder: Path
) -> None:
    result = run_server_to_its_end(*command(), *arguments, "--engine.tokenizer", "/nowhere", cwd=folder)
    [line] = [line for line in result.stderr.splitlines() if "level=" not in line]
    assert result.returncode == 1
    assert line.startswith(f"preceptor-server: {told}")
