from __future__ import annotations

import re

import pytest
from preceptor_server.bind_address import refuse_public

PUBLIC = ["0.0.0.0", "::", "10.0.0.7", "example.org", "127.0.0.1.evil.org"]
WAYS_OUT = re.escape(
    "give it both (tls.certificate and tls.key, access.file), or set host=127.0.0.1, or allow_insecure=true"
)


@pytest.mark.parametrize("host", PUBLIC)
@pytest.mark.parametrize(
    ("has_tls", "has_keys", "lacks"),
    [(False, False, "has neither keys nor TLS"), (True, False, "has no keys"), (False, True, "has no TLS")],
)
def test_public_address_without_both_is_refused_with_three_ways_out(
    host: str, has_tls: bool, has_keys: bool, lacks: str
) -> None:
    with pytest.raises(ValueError, match=rf"host={re.escape(host)} .* {lacks}: {WAYS_OUT}"):
        refuse_public(host, allow_insecure=False, has_tls=has_tls, has_keys=has_keys)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_address_with_tls_and_keys_is_taken(host: str) -> None:
    refuse_public(host, allow_insecure=False, has_tls=True, has_keys=True)


@pytest.mark.parametrize("host", PUBLIC)
def test_public_address_is_taken_where_somebody_said_so(host: str) -> None:
    refuse_public(host, allow_insecure=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_neither(host: str) -> None:
    refuse_public(host, allow_insecure=False)
