"""What a data file may be as bytes and as JSON, and where a message says that it is not."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from preceptor_client.train.data import reading
from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.errors import InvalidDataError

GOOD = b'{"prompt": "hello"}'


def _file(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "data.jsonl"
    path.write_bytes(data)
    return str(path)


def _refusal(source: str) -> str:
    with pytest.raises(InvalidDataError) as caught:
        load_examples(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"prompt": "café"}'.encode("cp1252"), "at byte 16 of the line (b'{\"prompt\": \"caf\\xe9\"}'): save"),
        (b'{"prompt": "a\xff"}', "not UTF-8 at byte 14 of the line"),
        (b'{"prompt": "a", "answer": NaN}', "holds NaN, which is not JSON"),
        (b'{"prompt": "a", "answer": -Infinity}', "holds -Infinity, which is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "key 'prompt' stands there twice"),
        (b"[" * 100_000, "lists or objects are nested too deep"),
        (b'{"a": ' * 100_000, "lists or objects are nested too deep"),
        (b'{"prompt": ' + b"1" * 5_000 + b"}", "'prompt' must be a text, or a list of messages, and not empty"),
        (b'{"prompt": "a\x00b"}', "not JSON: Invalid control character at at column 14"),
        (b"{prompt", "not JSON: Expecting property name enclosed in double quotes at column 2 ('{prompt')"),
        (b"\xef\xbb\xbf" + GOOD, "not JSON: Unexpected UTF-8 BOM"),
    ],
)  # fmt: skip
def test_line_that_is_no_json_of_utf_8_is_told_with_its_place_and_the_others_are_read(
    tmp_path: Path, line: bytes, expected: str
) -> None:
    source = _file(tmp_path, b"\n".join([GOOD, line, b"", GOOD]))
    message = _refusal(source)
    assert message.startswith(f"{source}:2: ")
    assert expected in message
    assert len(message) < 400
    bad = BadExamples(policy="skip", limit=1)
    assert [example.where for example in load_examples(source, bad=bad)] == [f"{source}:1", f"{source}:4"]
    assert [one.where for one in bad.found] == [f"{source}:2"]


@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "is UTF-16: save"),
        ("utf-16-le", "is UTF-16-LE: save"),
        ("utf-16-be", "is UTF-16-BE: save"),
        ("utf-32", "is UTF-32: save"),
        ("utf-32-le", "is UTF-32-LE: save"),
        ("utf-32-be", "is UTF-32-BE: save"),
    ],
)
def test_other_encoding_of_unicode_is_named(tmp_path: Path, encoding: str, named: str) -> None:
    message = _refusal(_file(tmp_path, GOOD.decode().encode(encoding)))
    assert f"data.jsonl: {named} the file as UTF-8" in message


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (gzip.compress(GOOD), "is a gzip file"),
        (b"PAR1....", "is a Parquet file"),
        (bytes(64), "begins with NUL bytes"),
        (b"", "holds no example"),
        (b"\xef\xbb\xbf", "holds no example"),
        (b"\n \r\n\t", "holds no example"),
    ],
)
def test_file_that_holds_no_lines_of_text_is_refused_as_a_whole(tmp_path: Path, data: bytes, named: str) -> None:
    source = _file(tmp_path, data)
    assert named in _refusal(source)
    with pytest.raises(InvalidDataError, match=r"data\.jsonl"):
        load_examples(source, bad=BadExamples(policy="skip", limit=100))


def test_mark_at_the_beginning_of_a_utf_8_file_is_no_part_of_it(tmp_path: Path) -> None:
    (example,) = load_examples(_file(tmp_path, b"\xef\xbb\xbf" + GOOD + b"\r\n"))
    assert example.prompt == "hello"


def test_line_ends_of_every_system_count_lines_alike(tmp_path: Path) -> None:
    source = _file(tmp_path, GOOD + b"\r\n" + GOOD + b"\r" + GOOD + b"\n\n" + GOOD)
    examples = load_examples(source)
    assert [example.where.rpartition(":")[2] for example in examples] == ["1", "2", "3", "5"]
    assert [example.index for example in examples] == [0, 1, 2, 3]


def test_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    (example,) = load_examples(_file(tmp_path, '{"prompt": "a\u2028b\u0085c"}'.encode()))
    assert example.prompt == "a\u2028b\u0085c"


def test_nul_that_is_escaped_is_a_character_like_others(tmp_path: Path) -> None:
    (example,) = load_examples(_file(tmp_path, rb'{"prompt": "a\u0000b"}'))
    assert example.prompt == "a\0b"


def test_line_that_is_too_long_is_refused_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 64)
    long = json.dumps({"prompt": "x" * 200}).encode()
    source = _file(tmp_path, b"\n".join([GOOD, long, GOOD]))
    assert f"{source}:2: the line is longer than" in _refusal(source)
    bad = BadExamples(policy="skip", limit=1)
    assert [example.where for example in load_examples(source, bad=bad)] == [f"{source}:1", f"{source}:3"]


def test_folder_missing_and_unreadable_file_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    assert "is a folder" in _refusal(str(folder))
    assert "no such file" in _refusal(str(tmp_path / "absent.jsonl"))
    assert "no such file" in _refusal(str(tmp_path / "with\0nul.jsonl"))
    assert "File name too long" in _refusal(str(tmp_path / ("x" * 300 + ".jsonl")))
    assert "not a dataset that can be read" in _refusal("x" * 300)
    assert "home directory" in _refusal("~nobody-of-this-name/data.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    source = _file(tmp_path, GOOD)
    Path(source).chmod(0)
    assert "cannot be read: Permission denied" in _refusal(source)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl.gz", "data.parquet", "data.txt"])
def test_file_of_another_name_is_told_the_one_that_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(GOOD)
    assert "the name of a file must end with .jsonl" in _refusal(str(tmp_path / name))
