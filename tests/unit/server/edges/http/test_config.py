from __future__ import annotations

from pathlib import Path

import pytest
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor_server.config import ServerConfig

from tests.engines.fake import fake_arguments

FAKE = fake_arguments()


def load(*arguments: str) -> ServerConfig:
    return load_settings(ServerConfig, [*FAKE, *arguments], program="preceptor-server")


def test_there_is_no_http_unless_it_is_asked_for() -> None:
    http = load().http
    assert (http.port, http.record, http.allow_origins, http.compare_with) == (None, 0, (), ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_a_public_host_is_refused_and_the_way_out_named(host: str) -> None:
    with pytest.raises(InvalidSettingsError, match=r"http: .*set host=127\.0\.0\.1, or allow_insecure=true"):
        load("--http.port", "0", "--http.host", host)
    assert load("--http.port", "0", "--http.host", host, "--http.allow-insecure", "true").http.host == host


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("http://127.0.0.1:8081", "http://127.0.0.1:8081"),
        ("https://Teacher.Lan/", "https://teacher.lan"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_an_origin_is_a_scheme_a_host_and_a_port(given: str, taken: str) -> None:
    http = load("--http.port", "0", "--http.compare-with", given, "--http.allow-origins", given).http
    assert (http.compare_with, http.allow_origins) == ((taken,), (taken,))


@pytest.mark.parametrize(
    "origin",
    ["*", "127.0.0.1:8081", "ftp://a", "http://a/path", "http://a b", "http://a; script-src *", "http://a'", "http://"],
)
def test_what_is_none_is_refused_since_it_goes_into_a_header(origin: str) -> None:
    for setting in ("--http.compare-with", "--http.allow-origins"):
        with pytest.raises(InvalidSettingsError, match=r"is no origin: write it as http://host:port"):
            load(setting, origin)


@pytest.mark.parametrize("host", ["http://a", "a/b", "a:80", "*", ""])
def test_an_allowed_host_is_a_name_alone(host: str) -> None:
    with pytest.raises(InvalidSettingsError, match="is no name of a host"):
        load("--http.allowed-hosts", host)


def test_a_tokenizers_folder_must_be_there(tmp_path: Path) -> None:
    http = load("--http.port", "0", "--http.tokenizers", f'{{"student": "{tmp_path}"}}').http
    assert http.tokenizers == {"student": tmp_path}
    with pytest.raises(InvalidSettingsError, match=r"http\.tokenizers\.student: is no folder that exists"):
        load("--http.tokenizers", f'{{"student": "{tmp_path / "nowhere"}"}}')


@pytest.mark.parametrize("setting", ["record", "timeout-seconds", "host"])
def test_setting_of_http_without_http_is_refused_since_nothing_would_read_it(setting: str) -> None:
    value = {"record": "100", "timeout-seconds": "5", "host": "127.0.0.2"}[setting]
    with pytest.raises(
        InvalidSettingsError, match=rf"http\.{setting.replace('-', '_')} is set, .*: set http\.port, or"
    ):
        load(f"--http.{setting}", value)


def test_setting_of_http_at_its_default_is_no_mistake() -> None:
    assert load("--http.record", "0", "--http.host", "127.0.0.1").http.port is None
