from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import logging
import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.errors import UnauthenticatedError
from preceptor_server.tenants.keys import ApiKey, KeyRecord, Secret, bearer_key, make_key, parse_key, verify

NOW = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def record_of(key: ApiKey, *, expires: datetime | None = None, is_revoked: bool = False) -> KeyRecord:
    return KeyRecord(id=key.id, tenant="a", digest=key.secret.digest(), expires=expires, is_revoked=is_revoked)


def parsed_or_refused(text: str) -> ApiKey | UnauthenticatedError:
    try:
        return parse_key(text)
    except UnauthenticatedError as error:
        return error


def test_a_secret_holds_32_random_bytes_and_no_two_keys_are_alike() -> None:
    keys = [make_key() for _ in range(200)]
    assert {len(base64.urlsafe_b64decode(key.secret.reveal() + "=")) for key in keys} == {32}
    assert len({key.id for key in keys}) == len({key.secret.reveal() for key in keys}) == 200


def test_digest_is_sha256_of_the_secret_alone() -> None:
    key = parse_key("prk_abcdefgh_" + "A" * 43)
    assert key.secret.digest().hex() == hashlib.sha256(b"A" * 43).hexdigest()


@given(
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=8, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_what_is_printed_is_read_back(key_id: str, secret: bytes) -> None:
    """Secrets hold _ and -, which must not be taken for what separates the parts."""
    text = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    parsed = parse_key(ApiKey(id=key_id, secret=Secret(text)).reveal())
    assert (parsed.id, parsed.secret.reveal()) == (key_id, text)


@given(st.text(max_size=80) | st.from_regex(r"prk_[a-z0-9_]{1,40}_[A-Za-z0-9_\-=]{1,60}", fullmatch=True))
def test_any_text_is_a_key_or_is_refused_without_being_repeated(text: str) -> None:
    found = parsed_or_refused(text)
    if isinstance(found, UnauthenticatedError):
        assert found.reason == "UNKNOWN_KEY"
        assert len(text) < 12 or text not in str(found)
    else:
        assert found.reveal() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "prk_abcdefgh_" + "A" * 42,
        "prk_abcdefgh_" + "A" * 44,
        "prk_abcdefg_" + "A" * 43,
        "prk_abcdefgH_" + "A" * 43,
        "PRK_abcdefgh_" + "A" * 43,
        "prk_abcdefgh_" + "A" * 43 + "\n",
        " prk_abcdefgh_" + "A" * 43,
        "prk_abcdefgh_" + "é" * 43,
    ],
)
def test_a_text_that_is_almost_a_key_is_refused(text: str) -> None:
    with pytest.raises(UnauthenticatedError, match="prk_<id>_<secret>"):
        parse_key(text)


def test_a_key_is_in_no_repr_no_log_no_format_and_no_pickle(caplog: pytest.LogCaptureFixture) -> None:
    key = make_key()
    secret = key.secret.reveal()
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").info("%s %r %s %r", key, key, key.secret, key.secret)
    shown = [caplog.text, repr(key), str(key), f"{key} {key.secret}", repr([key]), repr({"k": key.secret})]
    assert all(secret not in text for text in shown)
    assert "***" in caplog.text
    for thing in (key, key.secret):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(thing)
    with pytest.raises(TypeError):
        copy.deepcopy(key)


def test_the_right_key_is_accepted_and_any_other_is_unknown() -> None:
    key, other = make_key(), make_key()
    record = record_of(key)
    assert verify(key, record, now=NOW) is record
    for wrong in (other, ApiKey(id=key.id, secret=other.secret)):
        with pytest.raises(UnauthenticatedError) as raised:
            verify(wrong, record, now=NOW)
        assert raised.value.reason == "UNKNOWN_KEY"


def test_a_key_works_until_the_moment_at_which_it_expires() -> None:
    key = make_key()
    record = record_of(key, expires=NOW)
    assert verify(key, record, now=NOW - SECOND) is record
    for late in (NOW, NOW + SECOND):
        with pytest.raises(UnauthenticatedError, match=r"expired at 2030-01-01T00:00:00\+00:00") as raised:
            verify(key, record, now=late)
        assert raised.value.reason == "EXPIRED_KEY"


def test_only_the_holder_of_the_secret_hears_that_a_key_expired_or_was_revoked() -> None:
    key, stranger = make_key(), make_key()
    for record, reason in (
        (record_of(key, expires=NOW), "EXPIRED_KEY"),
        (record_of(key, is_revoked=True), "REVOKED_KEY"),
        (record_of(key, expires=NOW, is_revoked=True), "REVOKED_KEY"),
    ):
        with pytest.raises(UnauthenticatedError) as told:
            verify(key, record, now=NOW)
        assert told.value.reason == reason
        with pytest.raises(UnauthenticatedError) as hidden:
            verify(ApiKey(id=key.id, secret=stranger.secret), record, now=NOW)
        assert hidden.value.reason == "UNKNOWN_KEY"


def test_known_and_unknown_ids_are_compared_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hash the secret once and compare two digests of 32 bytes in constant time."""
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    key = make_key()
    for record in (record_of(make_key()), None):
        with pytest.raises(UnauthenticatedError) as raised:
            verify(key, record, now=NOW)
        assert str(raised.value) == "the key is not known here: ask whoever runs this server for one"
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32), (32, 32)]
    assert {a for a, _ in compared} == {key.secret.digest()}


@pytest.mark.parametrize(
    ("header", "key"),
    [(None, None), ("", None), ("  ", None), ("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("BEARER abc", "abc")],
)
def test_bearer_header_holds_a_key(header: str | None, key: str | None) -> None:
    assert bearer_key(header) == key


@pytest.mark.parametrize("header", ["Basic abc", "abc", "Bearer", "Bearer   ", "Bearerabc"])
def test_another_scheme_is_refused_without_being_repeated(header: str) -> None:
    with pytest.raises(UnauthenticatedError, match=r"^authorization must be: Bearer <key>$"):
        bearer_key(header)
