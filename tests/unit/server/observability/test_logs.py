from __future__ import annotations

import json
import logging
import sys

import pytest
from preceptor_server.observability import logs
from preceptor_server.observability.logs import JsonFormatter, TextFormatter, private, redacted
from preceptor_server.observability.tracing import SpanIds, showing

KEY = "prk_a1b2c3_" + "x" * 43


def record(text: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("preceptor_server.x", logging.WARNING, "x.py", 1, text, args, None)
    vars(made).update(more)
    return made


def with_traceback(text: str) -> logging.LogRecord:
    try:
        raise ValueError(text)
    except ValueError:
        made = record("it failed")
        made.exc_info = sys.exc_info()
    return made


def test_text_is_key_value_on_one_line() -> None:
    line = TextFormatter().format(record("refused reason=%s", "NO_KEY"))
    assert line.endswith(" level=WARNING logger=preceptor_server.x refused reason=NO_KEY")


def test_a_callers_line_feed_makes_no_line_of_its_own() -> None:
    line = TextFormatter().format(record("name=%s", "a\n2026-01-01 level=ERROR logger=x forged\r\x1b[2J\u2028"))
    assert line.splitlines() == [line]
    assert r"name=a\n2026-01-01" in line
    assert "\x1b" not in line


def test_an_errors_text_begins_no_line_of_its_own() -> None:
    first, *rest = TextFormatter().format(with_traceback("a\n2026-01-01 level=ERROR forged\x1b")).splitlines()
    assert first.endswith("it failed")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == r"    2026-01-01 level=ERROR forged\x1b"


def test_json_is_one_object_per_line_with_standard_keys() -> None:
    line = JsonFormatter().format(record("asked\nname=%s", "ü", tenant="acme", num_tokens=3))
    assert line.splitlines() == [line]
    told = json.loads(line)
    assert told["time"].endswith("+00:00")
    assert {name: told[name] for name in told if name != "time"} == {
        "level": "WARNING",
        "logger": "preceptor_server.x",
        "message": "asked\nname=ü",
        "tenant": "acme",
        "num_tokens": 3,
    }


def test_json_carries_the_traceback_in_the_same_line() -> None:
    told = json.loads(JsonFormatter().format(with_traceback("of this kind")))
    assert told["exception"].endswith("ValueError: of this kind")
    assert told["message"] == "it failed"


def test_extra_fields_do_not_replace_the_standard_ones() -> None:
    told = json.loads(JsonFormatter().format(record("real", level="forged", logger="forged", thing=object())))
    assert (told["level"], told["logger"], told["message"]) == ("WARNING", "preceptor_server.x", "real")
    assert told["thing"].startswith("<object")


def test_lines_name_the_span_at_hand() -> None:
    with showing(SpanIds(trace_id="a" * 32, span_id="b" * 16)):
        told = json.loads(JsonFormatter().format(record("x")))
        line = TextFormatter().format(record("x"))
    assert (told["trace_id"], told["span_id"]) == ("a" * 32, "b" * 16)
    assert line.endswith(f"x trace_id={'a' * 32} span_id={'b' * 16}")
    assert "trace_id" not in json.loads(JsonFormatter().format(record("x")))


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"key={KEY}",
        f"{{'authorization': 'Bearer {KEY}'}}",
        f"(('authorization', 'Bearer {KEY}'),)",
        f"Authorization: Bearer {KEY}",
        f"Bearer {KEY}",
        f"[(b'authorization', b'Bearer {KEY}')]",
        f"PRECEPTOR_API_KEY={KEY} preceptor train",
    ],
)
@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_key_never_reaches_a_line(formatter: logging.Formatter, text: str) -> None:
    for made in (record("got %s", text), record(text), with_traceback(text), record("x", extra_field={"a": text})):
        line = formatter.format(made)
        assert "x" * 20 not in line
        if isinstance(formatter, JsonFormatter):
            json.loads(line)


@pytest.mark.parametrize(
    "text",
    [
        "authorization: Basic dXNlcjpwYXNz",
        "authorization: dXNlcjpwYXNz",
        "{'Authorization': 'dXNlcjpwYXNz'}",
        '{"authorization":"Bearer dXNlcjpwYXNz"}',
        "authorization=dXNlcjpwYXNz",
        "basic dXNlcjpwYXNzd29yZA==",
    ],
)
def test_other_credentials_are_taken_out_too(text: str) -> None:
    assert "dXNlcjpwYXNz" not in redacted(text)
    assert "[redacted]" in redacted(text)


@pytest.mark.parametrize(
    "text", ["authorization failed", "the bearer of this", "basic settings are kept", "prk_ is how keys begin", "a prk"]
)
def test_plain_sentences_stay_as_they_are(text: str) -> None:
    assert redacted(text) == text


def test_prompts_are_told_by_length_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert private("a secret prompt") == "<15 characters>"
    monkeypatch.setattr(logs, "_log_prompts", True)
    assert private("a secret\nprompt") == r"'a secret\nprompt'"
    assert len(private("y" * 10_000)) < 2100


def test_set_up_once_it_writes_json_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()  # they are pytest's, and stay open
    try:
        logs.set_up_logging("INFO", log_format="json")
        logging.getLogger("preceptor_server.y").info("hello key=%s", KEY)
        logging.getLogger("preceptor_server.y").debug("not this")
        for _ in range(50):
            logging.getLogger("asyncio").error("out of file descriptors")
        lines = capsys.readouterr().err.splitlines()
        assert [json.loads(line)["message"] for line in lines] == ["hello key=[redacted]", "out of file descriptors"]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
