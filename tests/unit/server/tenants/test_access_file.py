from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preceptor_server.errors import StartupError
from preceptor_server.tenants.access_file import Access, parse_access, read_access
from preceptor_server.tenants.keys import KeyRecord
from preceptor_server.tenants.tenant import Right, Tenant

HASH = "ab" * 32
FILE = Path("access.toml")
KEY = f'[[keys]]\nid = "abcdefgh"\ntenant = "a"\nsha256 = "{HASH}"\n'


def parse(text: str) -> Access:
    return parse_access({FILE: text})


def test_every_setting_of_a_tenant_and_a_key_is_read() -> None:
    access = parse(
        f"""
        [tenants.team-a]
        weight = 2.5
        rights = ["score", "update_weights"]
        teachers = ["large"]
        tokens_per_second = 1000
        max_concurrent = 8
        max_bytes_in_flight = 1_000_000
        max_queue_tokens = 50_000
        max_queue_bytes = 2_000_000

        [tenants."b.c"]

        [[keys]]
        id = "abcdefgh"
        tenant = "team-a"
        sha256 = "{HASH}"
        created = 2029-01-02
        expires = 2030-01-31T12:00:00+02:00
        note = "the trainers in Oslo"

        [[keys]]
        id = "abcdefg2"
        tenant = "team-a"
        sha256 = "{"cd" * 32}"
        revoked = true
        """
    )
    assert access.tenants == {
        "team-a": Tenant(
            name="team-a",
            weight=2.5,
            rights=frozenset({Right.SCORE, Right.UPDATE_WEIGHTS}),
            teachers=frozenset({"large"}),
            tokens_per_second=1000.0,
            max_concurrent=8,
            max_bytes_in_flight=1_000_000,
            max_queue_tokens=50_000,
            max_queue_bytes=2_000_000,
        ),
        "b.c": Tenant(name="b.c"),
    }
    assert access.keys == {
        "abcdefgh": KeyRecord(
            id="abcdefgh",
            tenant="team-a",
            digest=b"\xab" * 32,
            created=datetime(2029, 1, 2, tzinfo=UTC),
            expires=datetime(2030, 1, 31, 12, tzinfo=timezone(timedelta(hours=2))),
        ),
        "abcdefg2": KeyRecord(id="abcdefg2", tenant="team-a", digest=b"\xcd" * 32, is_revoked=True),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tenants.a]\nweight = 'x'", r"access\.toml: \[tenants\.a\] weight: must be a number .*\(given: 'x'\)"),
        ("[tenants.a]\nweigth = 2", r"\[tenants\.a\] weigth: there is no such setting; did you mean weight\?"),
        ("[tenants.a]\nweight = true", r"weight: must be a number, not true or false"),
        ("[tenants.a]\nrights = ['all']", r"\[tenants\.a\] rights\.0: must be 'score', 'register', 'look' or 'upd"),
        ("[tenants.a]\nteachers = []", r"\[tenants\.a\] teachers: names no teacher: leave it out for all of them"),
        ("[tenants.'a b']", r"\[tenants\.'a b'\]: a tenant's name has 1 to 64 letters"),
        ("[tenants.'peer:1.2.3.4']", r"a tenant's name has 1 to 64 letters"),
        ("[tenants]\na = 1", r"tenants\.a: is a table, \[tenants\.a\]"),
        ("tenants = 3", r"tenants: is a table of tables"),
        ("[tenant.a]", r"tenant: there is no such table: an access file has \[tenants\.NAME\] and \[\[keys\]\]"),
        ("[keys]\na = 1", r"keys: is a list of tables, \[\[keys\]\]"),
        ("keys = [3]", r"\[\[keys\]\] number 1: "),
        ("[tenants.a\n", r"access\.toml: is not TOML: "),
        (
            "[[keys]]",
            r"(?s)3 mistake.*number 1: id: is not set.*number 1: tenant: is not set.*number 1: sha256: is not",
        ),
        (f"[tenants.a]\n{KEY}secret = 1", r"number 1: secret: there is no such setting: a key has id, tenant, sha256"),
        (f"[tenants.a]\n{KEY}expires = '2030-01-01'", r"number 1: expires: must be a date without quotes, such as"),
        (f"[tenants.a]\n{KEY}expires = 2030-01-01T00:00:00", r"expires: must say its offset: write a Z behind it"),
        (f"[tenants.a]\n{KEY.replace(HASH, HASH.upper())}", r"number 1: sha256: must be 64 digits 0-9a-f"),
        (f"[tenants.a]\n{KEY}{KEY}", r"number 2: the id abcdefgh stands in access\.toml already"),
        (KEY, r"access\.toml: \[\[keys\]\] abcdefgh: there is no tenant of this name in \[tenants\]: add \[tenants\.N"),
    ],
)
def test_a_mistake_names_the_file_the_table_the_key_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        parse(text)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(StartupError, match=r"^access\.file: 3 mistake\(s\)\n  access.*\n  access.*\n  access.*$"):
        parse(
            "[tenants.a]\nweight = 0\n[tenants.b]\nmax_concurrent = 0\n[[keys]]\nid='abcdefgh'\ntenant='a'\nsha256=''"
        )


@pytest.mark.parametrize("field", ["id", "sha256", "tenant", "expires", "revoked", "created"])
def test_a_key_pasted_into_the_file_is_not_repeated(field: str) -> None:
    pasted = "prk_abcdefgh_" + "S" * 43
    table = {"id": '"abcdefgh"', "tenant": '"a"', "sha256": f'"{HASH}"', field: f'"{pasted}"'}
    text = "[tenants.a]\n[[keys]]\n" + "\n".join(f"{name} = {value}" for name, value in table.items())
    with pytest.raises(StartupError) as raised:
        parse(text)
    assert "SSS" not in str(raised.value)


@given(st.text(max_size=200) | st.text(alphabet='[]=".tenanskyid\n12', max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        access = parse(text)
    except StartupError:
        return
    assert {key.tenant for key in access.keys.values()} <= set(access.tenants)


def test_a_folder_is_read_as_one_file_and_hidden_names_are_passed_over(tmp_path: Path) -> None:
    """As Kubernetes mounts a secret: names that lead into ..data, which leads into a folder of the newest version."""
    version = tmp_path / "..2026_01_01"
    version.mkdir()
    (version / "a.toml").write_text("[tenants.a]")
    (version / "keys.toml").write_text(KEY)
    (tmp_path / "..data").symlink_to(version.name)
    for name in ("a.toml", "keys.toml"):
        (tmp_path / name).symlink_to(Path("..data") / name)
    (tmp_path / ".hidden.toml").write_text("nonsense")
    (tmp_path / "readme.txt").write_text("nonsense")
    access = read_access(tmp_path)
    assert (list(access.tenants), list(access.keys)) == (["a"], ["abcdefgh"])


def test_a_tenant_in_two_files_of_a_folder_names_both(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text("[tenants.a]")
    with pytest.raises(StartupError, match=rf"{tmp_path}/b\.toml: \[tenants\.a\]: stands in {tmp_path}/a\.toml too"):
        read_access(tmp_path)


def test_a_tenant_and_a_key_may_have_one_name(tmp_path: Path) -> None:
    access = parse(KEY.replace('"a"', '"abcdefgh"') + "[tenants.abcdefgh]")
    assert access.keys["abcdefgh"].tenant == "abcdefgh"


def test_a_file_that_cannot_be_read_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        StartupError, match=r"No such file.*`preceptor-server keys new --tenant NAME --file .*none.toml`"
    ):
        read_access(tmp_path / "none.toml")
    with pytest.raises(StartupError, match=r"there is no \*\.toml in "):
        read_access(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(StartupError, match=r"latin\.toml is not UTF-8"):
        read_access(tmp_path)


def test_an_endless_file_is_refused() -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("no /dev/zero here")
    with pytest.raises(StartupError, match="it is no access file"):
        read_access(Path("/dev/zero"))
