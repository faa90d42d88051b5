"""API keys: their text, what is kept of them, and how one is verified. Reads no file and knows no tenant's limits.

A key is `prk_<id>_<secret>`. The id is no secret: it finds the record, and lists and logs may show it. The secret holds
256 random bits, so that its SHA-256 is all that has to be kept: nobody can guess it, and no slow hash is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn

from preceptor_server.errors import UnauthenticatedError

UNKNOWN_KEY = "UNKNOWN_KEY"
NO_KEY = "NO_KEY"
EXPIRED_KEY = "EXPIRED_KEY"
REVOKED_KEY = "REVOKED_KEY"

SECRET_BYTES = 32
ID_PATTERN = r"[a-z0-9]{8,32}"
_KEY = re.compile(rf"prk_(?P<id>{ID_PATTERN})_(?P<secret>[A-Za-z0-9_-]{{43}})")
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 12
_NOBODYS_DIGEST = secrets.token_bytes(hashlib.sha256().digest_size)
"""Compared with where no record has the id, so that an unknown id costs as much time as a known one."""


class Secret:
    """A text that stands in no log, no repr and no pickle."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def digest(self) -> bytes:
        """What is kept of it."""
        return hashlib.sha256(self._text.encode()).digest()

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: hand over its digest")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ApiKey:
    """What a caller shows."""

    id: str
    secret: Secret

    def reveal(self) -> str:
        """The text that the caller is given, once."""
        return f"prk_{self.id}_{self.secret.reveal()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What the server keeps of a key."""

    id: str
    tenant: str
    """Its name."""
    digest: bytes
    """SHA-256 of the secret."""
    created: datetime | None = None
    expires: datetime | None = None
    """From this moment on the key is refused; None = never."""
    is_revoked: bool = False


def make_key() -> ApiKey:
    """A key that nobody else has."""
    return ApiKey(
        id="".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH)),
        secret=Secret(secrets.token_urlsafe(SECRET_BYTES)),
    )


def parse_key(text: str) -> ApiKey:
    """Raises UnauthenticatedError, without the text, where it is no key."""
    found = _KEY.fullmatch(text)
    if found is None:
        raise UnauthenticatedError(
            "the key is not of the form prk_<id>_<secret>: send it as `preceptor-server keys new` printed it",
            reason=UNKNOWN_KEY,
        )
    return ApiKey(id=found["id"], secret=Secret(found["secret"]))


def verify(key: ApiKey, record: KeyRecord | None, *, now: datetime) -> KeyRecord:
    """The record, where the key is its key and may be used now. An id that no record has costs the same work. Raises
    UnauthenticatedError; that a key expired or was revoked is told only to whoever holds its secret."""
    kept = _NOBODYS_DIGEST if record is None else record.digest
    is_equal = hmac.compare_digest(key.secret.digest(), kept)
    if record is None or not is_equal:
        raise UnauthenticatedError(
            "the key is not known here: ask whoever runs this server for one", reason=UNKNOWN_KEY
        )
    if record.is_revoked:
        raise UnauthenticatedError(
            f"the key {record.id} was revoked: ask whoever runs this server for a new one", reason=REVOKED_KEY
        )
    if record.expires is not None and now >= record.expires:
        raise UnauthenticatedError(
            f"the key {record.id} expired at {record.expires.isoformat()}: ask whoever runs this server for a new one",
            reason=EXPIRED_KEY,
        )
    return record


def bearer_key(authorization: str | None) -> str | None:
    """The key in an `authorization` header or metadata value, "Bearer <key>"; None where there is no such header.
    Raises UnauthenticatedError for any other scheme."""
    if authorization is None or not authorization.strip():
        return None
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise UnauthenticatedError("authorization must be: Bearer <key>", reason=UNKNOWN_KEY)
    return text.strip()
