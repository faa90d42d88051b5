"""`preceptor score --http`, `preceptor tail` and the links of a report, against real servers over real sockets."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from preceptor.wire import LogprobDtype
from preceptor_client import GroupScores, TeacherClient, Text

from tests.engines.fake import fake_arguments
from tests.integration.trainers import RunFiles, run_training, write_run
from tests.integration.two_sided import TwoSided, two_sided
from tests.interruptible import started
from tests.tiny import END
from tests.unit.client.train.reports import embedded

PROMPT = "The capital of Norway is"
RESPONSE = " Oslo, bø"
TIMEOUT_SECONDS = 60
Json = Any  # Any: the leaves are whatever JSON holds


@pytest.fixture(scope="module")
def teacher(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoSided]:
    folder = tmp_path_factory.mktemp("two-sided")
    with two_sided(folder, "--engine.model", str(tiny_folder), "--http.record", "200") as teacher:
        yield teacher


def preceptor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "preceptor_client.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
    )


def headline(printed: str) -> str:
    """The lines above the table, without what differs from call to call."""
    return re.sub(r"\d+\.\d ms", "... ms", printed.partition("┏")[0])


def table(printed: str) -> list[list[str]]:
    """Its rows. A piece of a character is called by its name in the vocabulary over gRPC, by its byte over HTTP."""
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    return [[re.sub(r"<[^<> ]+>", "<piece>", cell).strip() for cell in row] for row in rows]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt", PROMPT, "--response", RESPONSE, "--top-k", "5"],
        ["--chat", "Capital of Norway?", "--response", f" Oslo{END}", "--temperature", "0.5", "--segmentation", "mask"],
        ["--prompt", PROMPT, "--response", RESPONSE, "--segmentation", "canonical", "--show", "2"],
    ],
)
def test_the_table_is_the_same_over_http_and_over_grpc(arguments: list[str], teacher: TwoSided) -> None:
    over_grpc = preceptor("score", "--address", teacher.server.address, *arguments)
    over_http = preceptor("score", "--http", teacher.url, *arguments)
    assert over_grpc.returncode == over_http.returncode == 0, over_grpc.stderr + over_http.stderr
    assert headline(over_http.stdout) == headline(over_grpc.stdout)
    assert table(over_http.stdout) == table(over_grpc.stdout)
    assert len(table(over_http.stdout)) >= 5


def test_a_refusal_of_the_server_is_one_line(teacher: TwoSided) -> None:
    refused = preceptor(
        "score", "--http", teacher.url, "--prompt", PROMPT, "--response", RESPONSE, "--teacher", "nobody"
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"preceptor score: teacher {teacher.url}: 404 Not Found: teacher: 'nobody'")
    assert refused.stderr.count("\n") == 1


def test_the_port_of_grpc_is_told_from_that_of_http(teacher: TwoSided) -> None:
    refused = preceptor(
        *("score", "--http", f"http://{teacher.server.address}", "--prompt", "a", "--response", "b"),
        *("--timeout-seconds", "2"),
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "gave no answer" in refused.stderr


async def score(address: str, *, caller: str, responses: int = 1) -> GroupScores:
    async with TeacherClient(address, caller=caller, timeout_seconds=TIMEOUT_SECONDS) as client:
        ids = [[token + 20 for token in RESPONSE.encode()]] * responses
        return await client.score(Text(PROMPT), ids, top_k=4, logprob_dtype=LogprobDtype.F32)


async def test_tail_lists_who_asked_for_what_over_both_sides(teacher: TwoSided) -> None:
    scores = await score(teacher.server.address, caller="trainer-7", responses=2)
    asked = preceptor("score", "--http", teacher.url, "--prompt", PROMPT, "--response", RESPONSE, "--top-k", "9")
    assert asked.returncode == 0
    listed = preceptor("tail", teacher.url, "--no-follow", "--json", "--last", "2")
    assert (listed.returncode, listed.stderr) == (0, "")
    first, second = [json.loads(line) for line in listed.stdout.splitlines()]
    one = scores.responses[0]
    assert (first["transport"], first["caller"], first["outcome"], first["top_k"]) == ("grpc", "trainer-7", "ok", 4)
    assert (first["num_responses"], first["num_positions"]) == (2, 2 * len(one.positions_N))
    assert first["mean_sampled_logprob"] == pytest.approx(float(one.sampled_logprobs_N.mean()), abs=1e-4)
    assert first["preview"] == PROMPT
    assert (second["transport"], second["top_k"]) == ("http", 9)
    assert second["number"] == first["number"] + 1
    people = preceptor("tail", teacher.url, "--no-follow", "--last", "2")
    heading, *lines = people.stdout.splitlines()
    assert heading.startswith("time      caller")
    assert re.search(
        rf"trainer-7\s+grpc\s+{first['num_positions']} in 2\s+4\s+1\s+-\d+\.\d{{3}}\s+\d+\.\d  ok ", lines[0]
    )
    assert lines[0].endswith(PROMPT)


def test_a_server_that_does_not_record_says_how_it_would(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [*fake_arguments(), "--engine.tokenizer", str(tiny_folder)]
    with two_sided(tmp_path, *arguments) as silent:
        refused = preceptor("tail", silent.url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "start it with --http.record 100" in refused.stderr


async def test_tail_goes_on_with_a_server_that_was_started_again(tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [*fake_arguments(), "--engine.tokenizer", str(tiny_folder), "--http.record", "10"]
    follower = None
    try:
        with two_sided(tmp_path / "first", *arguments) as first:
            for _ in range(2):
                await score(first.server.address, caller="early")
            follower = started("tail", first.url, "--json")
            assert follower.stdout is not None
            assert follower.stderr is not None
            early = [json.loads(follower.stdout.readline()) for _ in range(2)]
            assert [(one["number"], one["caller"]) for one in early] == [(1, "early"), (2, "early")]
            first.server.kill()
            assert follower.stderr.readline().startswith(f"{first.url}: no answer (")
            port = int(first.url.rpartition(":")[2])
        with two_sided(tmp_path / "second", *arguments, http_port=port) as second:
            assert follower.stderr.readline() == "the server answers again\n"
            await score(second.server.address, caller="late")
            late = json.loads(follower.stdout.readline())
            assert (late["number"], late["caller"]) == (1, "late")
            assert follower.stderr.readline() == "the server was started again: its requests count from 1\n"
            follower.send_signal(signal.SIGINT)
            assert follower.wait(TIMEOUT_SECONDS) == 130
            assert follower.stderr.read() == ""
    finally:
        if follower is not None:
            follower.kill()
            follower.communicate()


def asked_by(href: str) -> Json:
    encoded = href.partition("#request=")[2]
    return json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))


def check_links(files: RunFiles, url: str, *, num_ends: int) -> None:
    """Every rollout of the report links to the page, and what the link asks gives the numbers that the report shows."""
    report = files.directory / "report.html"
    rollouts, links = embedded(report, "rollouts"), embedded(report, "links")
    assert len(rollouts) == len(links) > 0
    for rollout, link in zip(rollouts, links, strict=True):
        assert link["href"].startswith(f"{url}/#request=")
        answer = httpx.post(f"{url}/v1/topk", json=asked_by(link["href"]), timeout=TIMEOUT_SECONDS)
        assert answer.status_code == 200, answer.text
        [scored] = answer.json()["responses"]
        assert scored["student_logprobs"] == [token["student_logprob"] for token in rollout["tokens"]]
        found = dict(zip(scored["positions"], scored["sampled_logprobs"], strict=True))
        for position, token in enumerate(rollout["tokens"]):
            if token["text"] == END and num_ends == 0:
                continue
            # The report has five digits.
            assert found[position] == pytest.approx(token["teacher_logprob"], rel=1e-4)


def test_a_link_of_the_report_asks_for_what_the_report_shows(
    teacher: TwoSided, tiny_folder: Path, tmp_path: Path
) -> None:
    files = write_run(tmp_path, student=tiny_folder, address=teacher.server.address, num_steps=2)
    options = ["--run.sample-rollouts", "3", "--teacher.temperature", "0.8"]
    status, output = run_training(files, *options)
    assert status == 0, output
    assert embedded(files.directory / "report.html", "links") == []
    # The page is named when the run goes on; the rollouts of before are linked too.
    status, output = run_training(files, *options, "--run.num-steps", "3", "--teacher.page", f"{teacher.url}/")
    assert status == 0, output
    check_links(files, teacher.url, num_ends=1)
    steps = {rollout["step"] for rollout in embedded(files.directory / "report.html", "rollouts")}
    assert steps == {1, 2, 3}


def test_the_report_of_an_old_run_links_to_a_server_started_since(
    teacher: TwoSided, tiny_folder: Path, tmp_path: Path
) -> None:
    files = write_run(tmp_path, student=tiny_folder, address=teacher.server.address, num_steps=1)
    status, output = run_training(files)
    assert status == 0, output
    with two_sided(tmp_path / "later", "--engine.model", str(tiny_folder)) as later:
        made = preceptor("report", str(files.directory), "--page", later.url)
        assert made.returncode == 0, made.stderr
        check_links(files, later.url, num_ends=0)
    named = ["--http.tokenizers", json.dumps({"student": str(tiny_folder)})]
    with two_sided(tmp_path / "named", "--engine.model", str(tiny_folder), *named) as later:
        made = preceptor("report", str(files.directory), "--page", later.url, "--tokenizer", "student")
        assert made.returncode == 0, made.stderr
        check_links(files, later.url, num_ends=1)
