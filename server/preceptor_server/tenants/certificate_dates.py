"""From when until when an X.509 certificate is valid, out of its DER (RFC 5280, section 4.1). Verifies nothing."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)

_INTEGER, _SEQUENCE, _VERSION = 0x02, 0x30, 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18


def validity_of(pem: bytes) -> tuple[datetime, datetime]:
    """Of the first certificate. Raises ValueError where there is none that can be read."""
    found = _PEM.search(pem)
    if found is None:
        raise ValueError("there is no certificate in it")
    der = base64.b64decode(found[1])
    try:
        _, at, _ = _element(der, 0, _SEQUENCE)  # Certificate
        _, at, _ = _element(der, at, _SEQUENCE)  # TBSCertificate
        tag, _, end = _element(der, at)
        if tag == _VERSION:
            at = end
        for expected in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, algorithm, issuer
            _, _, at = _element(der, at, expected)
        _, at, _ = _element(der, at, _SEQUENCE)  # Validity
        not_before, at = _time(der, at)
        not_after, _ = _time(der, at)
    except IndexError as error:
        raise ValueError("the certificate ends too early") from error
    return not_before, not_after


def _element(der: bytes, at: int, expected: int | None = None) -> tuple[int, int, int]:
    """The tag, where the contents begin, and where they end."""
    tag, length, start = der[at], der[at + 1], at + 2
    if expected is not None and tag != expected:
        raise ValueError(f"there is a tag {tag:#x} where {expected:#x} should be")
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[start : start + size])
        start += size
    return tag, start, start + length


def _time(der: bytes, at: int) -> tuple[datetime, int]:
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"there is a tag {tag:#x} where a time should be")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC), end
