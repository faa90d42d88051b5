"""A key: where it comes from, when it is read again, and that it is never shown."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest
from preceptor_client import BlockingTeacherClient, TeacherClient, TeacherIds
from preceptor_client.access import find_access
from preceptor_client.cli import main
from preceptor_client.credential import MAX_KEY_BYTES, Credential
from preceptor_client.errors import AccessDeniedError

from tests.unit.client.scripted_teacher import serving
from tests.unit.client.secure_serving import KeyedTeacher

KEY = "prk_7f3a_c2VjcmV0LXNlY3JldC1zZWNyZXQ"
OTHER = "prk_7f3b_b3RoZXItb3RoZXItb3RoZXI"


def header_of(**given: str) -> str:
    environment = {name.upper(): value for name, value in given.items()}
    return dict(find_access(environment=environment).authorization())["authorization"]


def test_a_key_is_the_argument_else_the_variable_else_the_file_that_a_variable_names(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(OTHER + "\n")
    both = {"PRECEPTOR_API_KEY": KEY, "PRECEPTOR_API_KEY_FILE": str(tmp_path / "key")}
    assert dict(find_access(api_key="given", environment=both).authorization()) == {"authorization": "Bearer given"}
    assert header_of(**both) == f"Bearer {KEY}"
    assert header_of(PRECEPTOR_API_KEY="", PRECEPTOR_API_KEY_FILE=str(tmp_path / "key")) == f"Bearer {OTHER}"
    assert find_access(environment={"PRECEPTOR_API_KEY": ""}).authorization() == ()


def test_key_and_key_file_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="api_key and api_key_file are both given"):
        find_access(api_key=KEY, api_key_file=tmp_path / "key", environment={})


@pytest.mark.parametrize("wrong", [f" {KEY}", f"{KEY}\n", f"{KEY} {KEY}", f"{KEY}é", f"{KEY}\x7f", ""])
def test_a_key_that_cannot_be_sent_is_refused_without_being_repeated(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"api_key (is empty|holds a space or a character)") as caught:
        TeacherClient("127.0.0.1:1", api_key=wrong)
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"key cannot be read \(No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (KEY.encode() + b"\n" + OTHER.encode(), "holds a space or a character"),
        (b"\xff\xfe", "holds a space or a character"),
        (b"x" * (MAX_KEY_BYTES + 1), "has more than 4096 bytes"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_by_its_path(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        Credential(path=path, source="api_key_file")
    assert str(path) in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_key_file_that_is_replaced_is_read_again_and_kept_while_it_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    credential = Credential(path=path, source="api_key_file")
    assert credential.header() == f"Bearer {KEY}"
    path.unlink()
    with caplog.at_level(logging.INFO):
        assert [credential.header() for _ in range(3)] == [f"Bearer {KEY}"] * 3
        (tmp_path / "new").write_text(OTHER)
        os.replace(tmp_path / "new", path)
        assert credential.header() == f"Bearer {OTHER}"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert KEY not in caplog.text
    assert OTHER not in caplog.text


def test_a_credential_shows_its_source_alone() -> None:
    credential = Credential(text=KEY, source="PRECEPTOR_API_KEY")
    access = find_access(api_key=KEY, environment={})
    client = TeacherClient("127.0.0.1:1", api_key=KEY)
    for shown in (repr(credential), str(credential), f"{credential}", repr(access), repr(client), str(vars(client))):
        assert KEY not in shown
    assert "PRECEPTOR_API_KEY" in repr(credential)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(credential)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(credential)


async def test_a_key_that_is_refused_is_asked_once_and_stands_in_no_error_and_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = KeyedTeacher(key=OTHER)
    with caplog.at_level(logging.DEBUG):
        async with serving(teacher) as address, TeacherClient(address, api_key=KEY) as client:
            with pytest.raises(AccessDeniedError, match="UNAUTHENTICATED: no such key") as caught:
                await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert len(teacher.requests) == 1
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in caplog.text


async def test_a_key_that_is_replaced_in_its_file_is_used_from_the_next_call_on(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    teacher = KeyedTeacher(key=KEY)
    async with serving(teacher) as address, TeacherClient(address, api_key_file=path) as client:
        await client.score(TeacherIds([1]), [[1]], top_k=2)
        teacher.key = OTHER
        path.write_text(OTHER + "\n")
        await client.score(TeacherIds([1]), [[1]], top_k=2)
    assert [entries["authorization"] for entries in teacher.metadata] == [f"Bearer {KEY}", f"Bearer {OTHER}"]


@pytest.mark.parametrize(
    "address", ["teacher.example:50051", "10.0.0.7:50051", "[fd00::1]:50051", "127.0.0.1.nip.io:1"]
)
def test_a_key_in_plain_text_to_another_machine_is_refused_with_the_fix(address: str) -> None:
    with pytest.raises(
        ValueError, match=rf"would go to {address.replace('[', chr(92) + '[')}.*insecure_key=True"
    ) as caught:
        BlockingTeacherClient(address, api_key=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.8.9.1:1", "localhost:1", "[::1]:1", "grpcs://teacher.example:1"]
)
def test_a_key_on_this_machine_or_by_tls_is_not_refused(address: str) -> None:
    TeacherClient(address, api_key=KEY)


def test_a_key_in_plain_text_may_be_allowed_and_a_variable_is_a_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    TeacherClient("teacher.example:1", api_key=KEY, insecure_key=True)
    monkeypatch.setenv("PRECEPTOR_API_KEY", KEY)
    with pytest.raises(ValueError, match=r"the key of PRECEPTOR_API_KEY would go to teacher\.example:1 in plain text"):
        TeacherClient("127.0.0.1:1,teacher.example:1")


@pytest.mark.parametrize("arguments", [["--api-key", KEY], [f"--api-key={KEY}"], [f"--api_key={KEY}"]])
def test_a_key_on_a_command_line_is_refused_without_being_repeated(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--address", "127.0.0.1:1", *arguments]) == 2
    said = capsys.readouterr()
    assert "--api-key-file" in said.err
    assert KEY not in said.err + said.out
