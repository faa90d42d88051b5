"""What docs/access.md tells people to type and to write, typed and read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from preceptor_server.tenants import directory, guesses, keys, quotas, rights
from preceptor_server.tenants.access_file import KeyTable, parse_access
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.config import AccessConfig, TenantTable, TlsConfig
from preceptor_server.tenants.tenant import Right

from tests.certificates import Issued
from tests.unit.server.tenants.tls_servers import REFUSED, WORD, ask_grpc, ask_http, grpc_server, http_server

DOCUMENT = (Path(__file__).parents[4] / "docs" / "access.md").read_text()
TOML = [tomllib.loads(text) for text in re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)]
COMMANDS = re.findall(r"^\$ (.*)$", DOCUMENT, re.MULTILINE)
SETTINGS = [tables for tables in TOML if "tenants" not in tables]
[ACCESS_FILE] = [tables for tables in TOML if "tenants" in tables]
ID = "4f7w2kx9m3ab"


def run(command: str, folder: Path) -> str:
    program, *arguments = shlex.split(command)
    if program == "preceptor-server":
        arguments = ["-m", "preceptor_server.cli", *arguments]
        program = sys.executable
    done = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_for_keys_make_list_and_revoke_one(tmp_path: Path) -> None:
    new, listing, revoke = [command for command in COMMANDS if command.startswith("preceptor-server keys")]
    key = run(new, tmp_path).strip()
    key_id = keys.parse_key(key).id
    _, row = run(listing, tmp_path).splitlines()
    assert [row.split()[column] for column in (0, 1, 3, 4)] == [key_id, "team-a", "2031-01-31", "valid"]
    run(revoke.replace(ID, key_id), tmp_path)
    found = directory.TenantDirectory(AccessConfig(file=tmp_path / "access.toml"))
    with pytest.raises(Exception, match="was revoked"):
        found.identify(key, peer="10.0.0.7")


@pytest.mark.parametrize("tables", SETTINGS)
def test_settings_of_the_server_are_taken(tables: dict[str, Any]) -> None:  # Any: whatever TOML holds
    assert tables.keys() <= {"access", "tls"}
    AccessConfig.model_validate(tables.get("access", {}))
    TlsConfig.model_validate(tables.get("tls", {}))


def test_the_access_file_is_read_and_shows_every_setting() -> None:
    text = next(
        text for text in re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL) if "sha256" in text
    )
    access = parse_access({Path("access.toml"): text})
    assert access.keys[ID].tenant == "team-a"
    assert set(ACCESS_FILE["tenants"]["team-a"]) == set(TenantTable.model_fields)
    assert set(ACCESS_FILE["keys"][0]) == set(KeyTable.model_fields)
    described = set(re.findall(r"`access\.(\w+)", DOCUMENT))
    assert set(AccessConfig.model_fields) <= described
    assert all(right.value in DOCUMENT for right in Right)


def test_every_reason_is_described() -> None:
    reasons = {
        *(keys.NO_KEY, keys.UNKNOWN_KEY, keys.EXPIRED_KEY, keys.REVOKED_KEY),
        *(quotas.TOO_MANY_CALLS, quotas.TOO_MANY_BYTES, quotas.RATE_LIMITED),
        *(rights.MISSING_RIGHT, rights.TEACHER_NOT_ALLOWED, guesses.TOO_MANY_WRONG_KEYS),
    }
    assert (
        set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", DOCUMENT))
        - {
            "PRECEPTOR_API_KEY",
            "PRECEPTOR_API_KEY_FILE",
            "RESOURCE_EXHAUSTED",
            "PERMISSION_DENIED",
            "INVALID_ARGUMENT",
        }
        == reasons
    )


async def test_certificates_made_by_the_commands_serve_both_sides(tmp_path: Path) -> None:
    for command in COMMANDS:
        if command.startswith("openssl"):
            run(command, tmp_path)
    [plain, mutual] = [tables["tls"] for tables in SETTINGS if "tls" in tables]
    ca = tmp_path / "ca.pem"
    client = Issued(certificate=tmp_path / "client.pem", key=tmp_path / "client-key.pem")
    for settings in (plain, mutual):
        paths = {name: value if isinstance(value, bool) else tmp_path / value for name, value in settings.items()}
        certificates = ServerCertificates(TlsConfig.model_validate(paths))
        async with grpc_server(certificates) as port, http_server(certificates) as http_port:
            for ask, asked in ((ask_grpc, port), (ask_http, http_port)):
                assert await ask(asked, ca=ca, cert=client) == WORD
                assert await ask(asked, ca=ca) == (WORD if settings is plain else REFUSED)
