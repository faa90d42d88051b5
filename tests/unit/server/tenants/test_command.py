from __future__ import annotations

import os
import stat
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preceptor_server.cli import main
from preceptor_server.tenants.access_edit import AccessEditError, is_only_change, parse, with_key, with_revoked
from preceptor_server.tenants.config import AccessConfig
from preceptor_server.tenants.directory import TenantDirectory
from preceptor_server.tenants.keys import make_key, parse_key
from preceptor_server.tenants.tenant import Right

from tests.unit.server.tenants.clocks import Clock

PEER = "10.0.0.7"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.toml"


def keys(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Status, stdout and stderr of `preceptor-server keys ...`."""
    status = main(["keys", *map(str, arguments)])
    written = capsys.readouterr()
    return status, written.out, written.err


def new(capsys: pytest.CaptureFixture[str], file: Path, *arguments: str) -> str:
    status, out, err = keys(capsys, "new", "--file", file, *arguments)
    assert status == 0, err
    assert out.count("\n") == 1
    return out.strip()


def test_a_new_key_is_printed_once_and_the_file_keeps_only_its_hash(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    status, out, err = keys(capsys, "new", "--tenant", "a", "--file", file)
    key = out.strip()
    assert status == 0
    assert parse_key(key).secret.reveal() not in err + file.read_text()
    assert str(file) in err
    assert TenantDirectory(AccessConfig(file=file)).identify(key, peer=PEER).name == "a"


def test_only_its_owner_can_read_or_write_the_file(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    before = os.umask(0)
    try:
        new(capsys, file, "--tenant", "a")
        file.chmod(0o666)
        new(capsys, file, "--tenant", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["access.toml"]


def test_what_stands_in_the_file_is_not_rewritten(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    written = (
        "# ours\n[tenants.'a']  # the first\nweight=2e0\n\n[tenants]\nb = {weight = 3}\n# the end, without a line end"
    )
    file.write_text(written.replace("[tenants]\nb = {weight = 3}", "[tenants.b]"))
    before = file.read_text()
    first = new(capsys, file, "--tenant", "a")
    assert file.read_text().startswith(before + "\n\n[[keys]]\n")
    between = file.read_text()
    new(capsys, file, "--tenant", "c.d")
    assert file.read_text().startswith(between + '\n[tenants."c.d"]\n')
    keys(capsys, "revoke", first.split("_")[1], "--file", file)
    assert file.read_text().replace("revoked = true\n", "").startswith(between)


def test_rights_and_expiry_of_a_new_tenant_are_written(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    key = new(capsys, file, "--tenant", "a", "--expires", "2999-01-31", "--rights", "score", "update_weights")
    clock = Clock()
    tenant = TenantDirectory(AccessConfig(file=file), now=clock.now).identify(key, peer=PEER)
    assert tenant.rights == {Right.SCORE, Right.UPDATE_WEIGHTS}
    assert str(tomllib.loads(file.read_text())["keys"][0]["expires"]) == "2999-01-31"


def test_an_expiry_with_an_offset_is_kept_as_a_moment(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    new(capsys, file, "--tenant", "a", "--expires", "2999-01-31T12:30:00+02:00")
    assert "expires = 2999-01-31T10:30:00Z\n" in file.read_text()


def test_a_key_is_rotated_and_revoked_while_a_server_runs(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    old = new(capsys, file, "--tenant", "a")
    directory = TenantDirectory(AccessConfig(file=file))
    young = new(capsys, file, "--tenant", "a")
    directory.refresh()
    assert {directory.identify(key, peer=PEER).name for key in (old, young)} == {"a"}
    status, out, err = keys(capsys, "revoke", old.split("_")[1], "--file", file)
    assert (status, out) == (0, "")
    assert f"key {old.split('_')[1]} of tenant a is revoked" in err
    directory.refresh()
    assert directory.identify(young, peer=PEER).name == "a"
    with pytest.raises(Exception, match="was revoked"):
        directory.identify(old, peer=PEER)


def test_revoking_twice_changes_nothing(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    key_id = new(capsys, file, "--tenant", "a").split("_")[1]
    keys(capsys, "revoke", key_id, "--file", file)
    once = file.read_bytes()
    assert keys(capsys, "revoke", key_id, "--file", file)[0] == 0
    assert file.read_bytes() == once


def test_keys_are_listed_with_their_state_and_without_secrets(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    revoked = new(capsys, file, "--tenant", "b").split("_")[1]
    valid = new(capsys, file, "--tenant", "a", "--expires", "2999-01-31").split("_")[1]
    file.write_text(
        file.read_text() + f'[[keys]]\nid="oldoldold"\ntenant="a"\nsha256="{"0" * 64}"\nexpires=2001-01-01\n'
    )
    keys(capsys, "revoke", revoked, "--file", file)
    status, out, _ = keys(capsys, "list", "--file", file)
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert status == 0
    assert rows["id"] == ["id", "tenant", "created", "expires", "state"]
    assert (rows[valid][1], rows[valid][3:]) == ("a", ["2999-01-31", "valid"])
    assert (rows[revoked][1], rows[revoked][3:]) == ("b", ["-", "revoked"])
    assert rows["oldoldold"] == ["oldoldold", "a", "-", "2001-01-01", "expired"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "--tenant", "a b"], "'a b' is no name for a tenant"),
        (["new", "--tenant", "peer:1.2.3.4"], "is no name for a tenant"),
        (
            ["new", "--tenant", "known", "--rights", "look"],
            "tenant known is there already: change its rights in the file",
        ),
        (["new", "--tenant", "a", "--expires", "2001-01-01"], "is past: name a later date"),
        (["revoke", "nothere"], "has no key of this id: preceptor-server keys list shows them"),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    file.write_text("[tenants.known]\n")
    status, out, err = keys(capsys, *arguments, "--file", file)
    assert (status, out) == (2, "")
    assert message in err
    assert file.read_text() == "[tenants.known]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tenants.a", "is not TOML"),
        ("[tenants.a]\nweight = 0\n", "[tenants.a] weight: must be greater than 0"),
        ("keys = []\n[tenants.a]\n", "is not TOML"),  # a list that is written out takes no [[keys]] behind it
    ],
)
def test_a_file_with_mistakes_is_not_made_longer(
    text: str, message: str, capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    file.write_text(text)
    status, out, err = keys(capsys, "new", "--tenant", "a", "--file", file)
    assert (status, out) == (2, "")
    assert message in err
    assert file.read_text() == text


def test_a_whole_key_given_for_an_id_is_not_repeated(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    key = new(capsys, file, "--tenant", "a")
    status, _, err = keys(capsys, "revoke", key, "--file", file)
    assert status == 2
    assert key not in err


def test_a_key_that_is_written_otherwise_is_left_to_a_person(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    hashed = "0" * 64
    for text in (
        f'keys = [{{id = "abcdefgh", tenant = "a", sha256 = "{hashed}"}}]\n[tenants.a]\n',
        f'[tenants.a]\n[[keys]]\nid = "abcdefgh"\ntenant = "a"\nsha256 = "{hashed}"\nrevoked = false\n',
    ):
        file.write_text(text)
        status, _, err = keys(capsys, "revoke", "abcdefgh", "--file", file)
        assert status == 2
        assert "write revoked = true beside" in err
        assert file.read_text() == text


@pytest.mark.parametrize(
    "arguments",
    [[], ["new"], ["new", "--tenant", "a", "--rights", "all"], ["new", "--tenant", "a", "--expires", "soon"], ["sell"]],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["keys", *arguments])
    assert raised.value.code == 2


def test_folders_and_missing_folders_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "is a folder: name the file in it" in keys(capsys, "new", "--tenant", "a", "--file", tmp_path)[2]
    assert "does not exist: make it" in keys(capsys, "new", "--tenant", "a", "--file", tmp_path / "no" / "a.toml")[2]
    assert "keys new --tenant NAME --file" in keys(capsys, "list", "--file", tmp_path / "none.toml")[2]


def test_a_link_goes_on_leading_to_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "access.toml"
    link.symlink_to(tmp_path / "elsewhere" / "access.toml")
    new(capsys, link, "--tenant", "a")
    assert link.is_symlink()
    assert "[tenants.a]" in (tmp_path / "elsewhere" / "access.toml").read_text()


def test_commands_at_the_same_time_lose_no_key(file: Path) -> None:
    threads = [
        threading.Thread(target=main, args=(["keys", "new", "--tenant", "a", "--file", str(file)],)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tomllib.loads(file.read_text())["keys"]) == 16


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
NOISE = st.lists(st.sampled_from(["", "# a = [", "  ", "#", "\t# x"]), max_size=3).map("\n".join)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(NAMES, NOISE, st.sampled_from(["\n", "\r\n", ""])), min_size=1, max_size=6), st.data())
def test_any_sequence_of_changes_keeps_what_was_there(steps: list[tuple[str, str, str]], data: st.DataObject) -> None:
    text, made = "", []
    for tenant, noise, end in steps:
        key = make_key()
        before = parse(text, Path("f"))
        text = with_key(text, key, tenant=tenant, rights=None, created=Clock().now(), expires=None)
        after = parse(text, Path("f"))
        assert is_only_change(before, after, key.id)
        assert (after.keys[key.id].tenant, after.keys[key.id].digest) == (tenant, key.secret.digest())
        made.append(key.id)
        text += noise + end
        doomed = data.draw(st.sampled_from(made))
        before = parse(text, Path("f"))
        if not before.keys[doomed].is_revoked:
            text = with_revoked(text, doomed)
            after = parse(text, Path("f"))
            assert after.keys[doomed].is_revoked
            assert is_only_change(before, after, doomed)


def test_a_change_of_another_key_or_tenant_is_seen() -> None:
    table = '[[keys]]\nid = "{}"\ntenant = "a"\nsha256 = "' + "0" * 64 + '"\n'
    one, two = table.format("aaaaaaaa"), table.format("bbbbbbbb")
    before = parse("[tenants.a]\n" + one, Path("f"))
    for text in (
        "[tenants.a]\n" + two,
        "[tenants.a]\n" + one,
        "[tenants.a]\n" + one + "revoked = true\n" + two,
        "[tenants.a]\nweight = 2\n" + one + two,
    ):
        assert not is_only_change(before, parse(text, Path("f")), "bbbbbbbb")
    assert is_only_change(before, parse("[tenants.a]\n[tenants.b]\n" + one + two, Path("f")), "bbbbbbbb")


def test_an_id_that_stands_twice_is_left_to_a_person() -> None:
    with pytest.raises(AccessEditError, match="by hand"):
        with_revoked('id = "aaaaaaaa"\nid = "aaaaaaaa"\n', "aaaaaaaa")
