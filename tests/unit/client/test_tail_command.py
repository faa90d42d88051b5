"""What `preceptor tail` prints, where, and how it fails and ends."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import datetime

import pytest
from preceptor_client.commands import tail

from tests.interruptible import started
from tests.unit.client.http.scripted_http import (
    Problem,
    Raw,
    ScriptedHttp,
    record,
    serving_http,
)


@pytest.fixture
def server() -> ScriptedHttp:
    return ScriptedHttp(records=[record(number) for number in range(1, 4)])


@pytest.fixture
def url(server: ScriptedHttp) -> Iterator[str]:
    with serving_http(server) as url:
        yield url


def clock(number: int) -> str:
    return datetime.fromtimestamp(record(number)["at"]).strftime("%H:%M:%S")


def test_a_request_is_one_line_below_the_names_of_its_columns(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tail.run([url, "--no-follow", "--last", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second, third = out.splitlines()
    assert first.split() == ["time", "caller", "via", "positions", "K", "temp", "logprob", "ms", "outcome", "prompt"]
    assert second == (
        f"{clock(2)}  trainer-1           grpc   128 in 4    32     1    -0.812      41.2  ok       "
        "The capital of Norway is"
    )
    assert third.startswith(clock(3))
    assert second.index("The capital") == first.index("prompt")


def test_json_is_one_object_a_line_with_every_field(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tail.run([url, "--no-follow", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(text) for text in lines] == [record(number) for number in range(1, 4)]


def test_nothing_recorded_yet_prints_nothing(
    server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.records = []
    assert tail.run([url, "--no-follow"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_server_that_does_not_record_fails_and_says_how_it_would(
    server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.records, server.is_recording = [], False
    assert tail.run([url]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"preceptor tail: the server at {url} records no requests: start it with --http.record 100, which keeps that "
        "many, prompts included, in its memory\n"
    )


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (Problem(status=404, detail="no such page", reason="NOT_FOUND"), "404 Not Found: no such page"),
        (Raw(content=b"<html>"), "/v1/requests answered something else"),
    ],
)
def test_a_mistake_is_not_repeated(
    step: Problem | Raw, says: str, server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [step]
    assert tail.run([url]) == 1
    assert says in capsys.readouterr().err
    assert len(server.calls) == 1


def test_an_outage_is_told_once_and_so_is_its_end(
    server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [Problem(status=503, detail="draining", reason="DRAINING")] * 2
    assert tail.run([url, "--no-follow"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert err.splitlines() == [
        f"{url}: 503 Service Unavailable: draining; asking again",
        "the server answers again",
    ]


def test_a_server_that_stays_away_is_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    with serving_http(ScriptedHttp()) as url:
        pass
    assert tail.run([url, "--timeout-seconds", "0.3"]) == 1
    told, failed = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{url}: no answer (")
    assert failed.startswith(f"preceptor tail: teacher {url} gave no answer: waited")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["localhost:8080"], "write http://HOST:PORT"),
        (["http://a:1", "--last", "-1"], "last"),
        (["http://a:1", "--timeout-seconds", "0"], "timeout_seconds"),
    ],
)
def test_wrong_settings_exit_with_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tail.run(arguments) == 2
    assert says in capsys.readouterr().err


def test_no_url_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert tail.run([]) == 2
    assert "the following arguments are required: URL" in capsys.readouterr().err


def test_missing_httpx_says_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "preceptor_client.http.connection", raising=False)
    assert tail.run([url]) == 1
    assert "pip install 'preceptor[http]'" in capsys.readouterr().err


def test_what_ends_later_is_shown_at_once_and_ctrl_c_ends_it_quietly(server: ScriptedHttp, url: str) -> None:
    process = started("tail", url, "--json", "--last", "1")
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["number"] == 3
        server.records.append(record(4))
        assert json.loads(process.stdout.readline())["number"] == 4
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=30)
        assert (process.returncode, rest, complaints) == (130, "", "")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("arguments", [["--json"], []])
def test_a_reader_that_has_seen_enough_ends_it_quietly(arguments: list[str], server: ScriptedHttp, url: str) -> None:
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(0.01):
            server.records.append(record(server.records[-1]["number"] + 1))

    thread = threading.Thread(target=go_on)
    thread.start()
    with started("tail", url, *arguments) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(timeout=30) == 1
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()
            is_over.set()
            thread.join()
