from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from preceptor_server.errors import StartupError
from preceptor_server.tenants.certificate_dates import validity_of
from preceptor_server.tenants.certificates import ServerCertificates, read_certificates
from preceptor_server.tenants.config import TlsConfig

from tests.certificates import Authority, Issued

NOW = datetime.now(UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def config_of(issued: Issued, *, client_ca: Path | None = None) -> TlsConfig:
    return TlsConfig(
        certificate=issued.certificate,
        key=issued.key,
        client_ca=client_ca,
        require_client_certificate=client_ca is not None,
    )


def test_what_was_read_is_what_stands_in_the_files(authority: Authority) -> None:
    issued = authority.issue()
    read = read_certificates(config_of(issued, client_ca=authority.ca))
    assert (read.key, read.certificate) == issued.pair()
    assert read.client_ca == authority.ca.read_bytes()


def test_a_private_key_is_in_no_repr(authority: Authority) -> None:
    shown = repr(read_certificates(config_of(authority.issue())))
    assert "BEGIN CERTIFICATE" in shown
    assert "PRIVATE" not in shown


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [
        (datetime(2020, 2, 29, 12, 30, 59, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (datetime(1950, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)),  # the first dates of either spelling
        (datetime(1999, 12, 31, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_dates_are_those_that_another_library_reads(
    authority: Authority, not_before: datetime, not_after: datetime
) -> None:
    pem = authority.issue(not_before=not_before, not_after=not_after).certificate.read_bytes()
    parsed = x509.load_pem_x509_certificate(pem)
    assert validity_of(pem) == (parsed.not_valid_before_utc, parsed.not_valid_after_utc) == (not_before, not_after)


def test_cut_and_changed_certificates_have_no_dates_or_others_but_never_crash(authority: Authority) -> None:
    lines = authority.issue().certificate.read_bytes().splitlines()
    assert lines[0] == b"-----BEGIN CERTIFICATE-----"
    for number in range(1, 8):
        for changed in (b"", b"////" * 16, lines[number][::-1]):
            body = [*lines[:number], changed, *lines[number + 1 :]]
            try:
                first, last = validity_of(b"\n".join(body))
            except ValueError:
                continue
            assert first.tzinfo is last.tzinfo is UTC


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda issued: issued.key.unlink(), r"tls\.key: .*server-key\.pem cannot be read \(No such file .*name a PEM"),
        (lambda issued: issued.certificate.unlink(), r"tls\.certificate: .*-server\.pem cannot be read \(No such file"),
        (
            lambda issued: issued.key.write_bytes(b"\x30\x82"),
            r"tls\.key: .* is no PEM file with a private key: it must",
        ),
        (lambda issued: issued.certificate.write_text(""), r"tls\.certificate: .* is no PEM file with a certificate"),
        (
            lambda issued: issued.certificate.write_bytes(issued.key.read_bytes()),
            r"tls\.certificate: .* is no PEM file with a certificate: .* begins with -----BEGIN \.\.\.CERTIFICATE-----",
        ),
        (
            lambda issued: issued.certificate.write_bytes(issued.certificate.read_bytes()[:300]),
            r"tls: .*server\.pem with .*server-key\.pem cannot be used",
        ),
    ],
)
def test_files_that_cannot_be_used_name_the_setting_the_file_and_the_fix(
    spoil: Callable[[Issued], object], message: str, authority: Authority
) -> None:
    issued = authority.issue()
    spoil(issued)
    with pytest.raises(StartupError, match=message):
        ServerCertificates(config_of(issued))


def test_a_key_of_another_certificate_is_told(authority: Authority) -> None:
    one, other = authority.issue("one"), authority.issue("other")
    with pytest.raises(
        StartupError, match=r"tls\.key: .*other-key\.pem does not belong to the first certificate in .*one"
    ):
        ServerCertificates(config_of(Issued(certificate=one.certificate, key=other.key)))


def test_a_chain_in_the_wrong_order_is_told(authority: Authority) -> None:
    issued = authority.issue()
    issued.certificate.write_bytes(authority.ca.read_bytes() + issued.certificate.read_bytes())
    with pytest.raises(StartupError, match=r"let the server's own certificate stand first"):
        ServerCertificates(config_of(issued))


def test_a_key_with_a_password_asks_nobody_for_it(authority: Authority) -> None:
    issued = authority.issue()
    locked = issued.key.with_name("locked.pem")
    command = ["openssl", "pkey", "-in", str(issued.key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(
        StartupError, match=r"locked\.pem has a password: write it without one \(openssl pkey -in locked"
    ):
        ServerCertificates(config_of(Issued(certificate=issued.certificate, key=locked)))


def test_an_authority_of_clients_that_is_none_is_told(authority: Authority, tmp_path: Path) -> None:
    broken = tmp_path / "broken-ca.pem"
    broken.write_bytes(authority.ca.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n")
    with pytest.raises(StartupError, match=r"tls\.client_ca: .*broken-ca\.pem cannot be used"):
        ServerCertificates(config_of(authority.issue(), client_ca=broken))


@pytest.mark.parametrize(
    ("begins", "ends", "message"),
    [
        (-20, -1, "expired at"),
        (1, 20, "is valid from"),
        (-20, 5, "expires at"),
        (-20, 100, None),
    ],
)
def test_dates_that_clients_refuse_are_warned_of(
    begins: int, ends: int, message: str | None, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    issued = authority.issue(not_before=NOW + timedelta(days=begins), not_after=NOW + timedelta(days=ends))
    ServerCertificates(config_of(issued))
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == (message is not None)
    assert message is None or message in warnings[0]


def test_a_key_that_others_can_read_is_warned_of(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    issued = authority.issue()
    issued.key.chmod(0o644)
    ServerCertificates(config_of(issued))
    assert [record.message for record in caplog.records] == [f"tls.key={issued.key} can be read by others: chmod o-rwx"]


def test_new_files_are_taken_when_they_fit_together_and_not_before(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever replaces two files replaces one after the other."""
    issued = authority.issue()
    certificates = ServerCertificates(config_of(issued))
    first = certificates.value
    successor = authority.issue("successor", not_before=NOW - timedelta(days=9), not_after=NOW + timedelta(days=9))
    successor.certificate.replace(issued.certificate)
    certificates.refresh()
    assert certificates.value is first
    assert certificates.num_reload_failures == 1
    successor.key.replace(issued.key)
    certificates.refresh()
    assert (certificates.value.key, certificates.value.certificate) == issued.pair()
    assert (certificates.num_reloads, certificates.num_reload_failures) == (1, 1)
    assert any("expires at" in record.message for record in caplog.records)
