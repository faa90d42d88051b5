from __future__ import annotations

import pytest
from preceptor_client.url import checked_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://teacher.example/", "https://teacher.example"),
        ("http://teacher:8080/big//", "http://teacher:8080/big"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_url_loses_only_the_slashes_at_its_end(url: str, expected: str) -> None:
    assert checked_url(url) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is no URL"),
        ("127.0.0.1:8080", "write http://HOST:PORT"),
        ("teacher:8080", "write http://HOST:PORT"),
        ("javascript:alert(1)", "write http://HOST:PORT"),
        ("javascript://teacher:8080/%0aalert(1)", "write http://HOST:PORT"),
        ("file:///etc/passwd", "write http://HOST:PORT"),
        ("http://", "write http://HOST:PORT"),
        ("http://:8080", "write http://HOST:PORT"),
        ("http://teacher:0", "write http://HOST:PORT"),
        ("http://teacher:many", "is no URL"),
        ("http://teacher:99999", "is no URL"),
        ("http://[::1", "is no URL"),
        ("http://tea cher:8080", "write http://HOST:PORT"),
        ("http://teacher:8080\n/x", "write http://HOST:PORT"),
        ("http://user:secret@teacher:8080", "a name or a password"),
        ("http://teacher:8080/#request=x", "a '\\?' or a '#'"),
        ("http://teacher:8080?", "a '\\?' or a '#'"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked_url(url)
