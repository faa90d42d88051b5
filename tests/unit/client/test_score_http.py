"""`preceptor score --http`: the same table as over gRPC, and how it fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest
from preceptor_client.commands import score, score_http

from tests.unit.client.http.scripted_http import Hang, Lie, Problem, Raw, ScriptedHttp, serving_http
from tests.unit.client.http.scripted_topk import Json
from tests.unit.client.scripted_teacher import ScriptedTeacher, serving
from tests.unit.client.test_score_command import RESPONSE, rows_of, tokenizer

PROMPT = "The capital of Norway is"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ScriptedHttp:
    monkeypatch.setenv("COLUMNS", "250")
    return ScriptedHttp()


@pytest.fixture
def url(server: ScriptedHttp) -> Iterator[str]:
    with serving_http(server) as url:
        yield url


def run(url: str, *arguments: str) -> int:
    return score.run(["--http", url, "--response", RESPONSE, *arguments])


async def test_the_table_is_the_one_that_grpc_gives(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", PROMPT, "--response", RESPONSE, "--temperature", "0.5", "--top-k", "6", "--show", "0"]
    teacher = ScriptedTeacher(tokenizer_json=tokenizer().to_str().encode())
    async with serving(teacher) as address:
        assert await asyncio.to_thread(score.run, ["--address", address, *arguments]) == 0
    over_grpc = capsys.readouterr().out
    assert await asyncio.to_thread(score.run, ["--http", url, *arguments]) == 0
    assert capsys.readouterr().out == over_grpc
    assert len(rows_of(over_grpc)) == 3


def test_the_server_cuts_the_text_and_is_told_only_what_was_chosen(server: ScriptedHttp, url: str) -> None:
    assert run(url, "--prompt", " is ") == 0
    path, body = server.calls[0]
    assert path == "/v1/topk"
    assert body == {
        "prompt": {"text": " is "},
        "responses": [{"text": RESPONSE}],
        "top_k": 8,
        "temperature": 1.0,
        "logprob_dtype": "f32",
    }
    assert "tokenizers" not in score_http.__dict__


def test_chat_segmentation_teacher_and_adapter_are_sent(server: ScriptedHttp, url: str) -> None:
    chosen = ["--segmentation", "mask", "--teacher", "tutor", "--adapter", "law"]
    assert run(url, "--chat", "Capital of Norway?", *chosen) == 0
    _, body = server.calls[0]
    assert body["prompt"] == {"messages": [{"role": "user", "content": "Capital of Norway?"}]}
    assert (body["segmentation"], body["teacher"], body["adapter"]) == ("mask", "tutor", "law")


def test_tools_and_template_arguments_are_sent_in_the_bodys_shape(server: ScriptedHttp, url: str) -> None:
    options = ["--tools", '[{"type": "function"}]', "--chat-template-kwargs", '{"enable_thinking": false}']
    assert run(url, "--chat", "hi", *options) == 0
    assert server.calls[0][1]["prompt"] == {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function"}],
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_tokens_show_as_the_answer_writes_them(
    server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"21": "<0xC3><0xB8>", "32": "\x1b[31m[red]", "80": ""}
    server.script = [Lie(change=lambda answer: answer["texts"].update(texts))]
    assert run(url, "--prompt", PROMPT) == 0
    assert [row[1] for row in rows_of(capsys.readouterr().out)] == ["<0xC3><0xB8>", r"'\x1b[31m[red]'", "<80>"]


def test_an_overloaded_server_is_asked_again(server: ScriptedHttp, url: str) -> None:
    server.script = [Problem(status=429, reason="QUEUE_FULL", retry_after_seconds=0.01)]
    assert run(url, "--prompt", PROMPT) == 0
    assert [path for path, _ in server.calls] == ["/v1/topk", "/v1/topk", "/v1/info"]


def change_answer(**fields: Json) -> Lie:
    return Lie(change=lambda answer: answer.update(fields))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            Problem(status=400, detail="prompt.text: empty", reason="INVALID_ARGUMENT", field="prompt.text"),
            "prompt.text",
        ),
        (Problem(status=404, detail="unknown", reason="UNKNOWN_TEACHER", field="teacher"), "404 Not Found: unknown"),
        (Raw(content=b"hello"), "answered something else than docs/http.md says"),
        (Raw(content=b"no such page", status=404), "is this the HTTP side, http.port, of a preceptor-server?"),
        (change_answer(top_k=3), "top_k: the request said 8, the answer says 3"),
        (change_answer(adapter="law"), "adapter: the request said '', the answer says 'law'"),
        (change_answer(temperature=2.0), "temperature: the request said 1.0"),
        (change_answer(responses=[]), "responses (their number)"),
        (change_answer(teacher="stranger"), "'stranger' answered, which the server does not name"),
        (change_answer(prompt_ids=[1]), "other ids were scored than the ones sent"),
    ],
)
def test_a_refusal_or_a_wrong_answer_is_one_line_on_stderr(
    step: Problem | Raw | Lie, says: str, server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [step]
    assert run(url, "--prompt", PROMPT) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("preceptor score: ")
    assert err.count("\n") == 1
    assert says in err
    assert len([path for path, _ in server.calls if path == "/v1/topk"]) == 1


def test_a_silent_server_is_given_up_at_the_deadline(
    server: ScriptedHttp, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = [Hang(seconds=2.0)]
    assert run(url, "--prompt", PROMPT, "--timeout-seconds", "0.2") == 1
    assert "no answer in 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give either --address or --http"),
        (["--address", "a:1", "--http", "http://a:2"], "give either --address or --http"),
        (["--http", "a:2"], "http: 'a:2' is no URL: write http://HOST:PORT"),
    ],
)
def test_exactly_one_server_is_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.run([*arguments, "--prompt", "a", "--response", "b"]) == 2
    assert says in capsys.readouterr().err


def test_missing_httpx_says_what_to_install(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "preceptor_client.http.connection", raising=False)
    assert run(url, "--prompt", PROMPT) == 1
    assert "the package httpx is missing: run `pip install 'preceptor[http]'`" in capsys.readouterr().err


def test_no_tokenizer_library_is_needed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert run(url, "--prompt", PROMPT) == 0
