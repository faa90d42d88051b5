from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest
from preceptor_server.errors import QuotaExceededError, StartupError, UnauthenticatedError
from preceptor_server.tenants.config import AccessConfig, TenantLimits
from preceptor_server.tenants.directory import TenantDirectory
from preceptor_server.tenants.guesses import KeyGuesses
from preceptor_server.tenants.keys import ApiKey, make_key
from preceptor_server.tenants.reloading import Reloader
from preceptor_server.tenants.tenant import ALL_BUT_UPDATE, Right, Tenant

from tests.unit.server.tenants.clocks import Clock

PEER = "ipv4:10.0.0.7:5312"


def table(key: ApiKey, *, tenant: str = "a", more: str = "") -> str:
    return f'[[keys]]\nid = "{key.id}"\ntenant = "{tenant}"\nsha256 = "{key.secret.digest().hex()}"\n{more}\n'


def write(path: Path, *parts: str) -> None:
    """As `keys new` does: a reader sees all of it or nothing."""
    unfinished = path.with_name("unfinished")
    unfinished.write_text("\n".join(parts))
    unfinished.replace(path)


def refused(directory: TenantDirectory, key: str | None, *, peer: str = PEER) -> str:
    """The reason."""
    with pytest.raises((UnauthenticatedError, QuotaExceededError)) as raised:
        directory.identify(key, peer=peer)
    return raised.value.reason


def test_without_a_file_the_tenant_is_the_address_whatever_the_port_and_the_key() -> None:
    directory = TenantDirectory(AccessConfig())
    for peer, key in ((PEER, None), ("10.0.0.7", None), ("ipv4:10.0.0.7:99", make_key().reveal()), (PEER, "nonsense")):
        assert directory.identify(key, peer=peer) == Tenant(name="peer:10.0.0.7", rights=ALL_BUT_UPDATE)
    assert directory.identify(None, peer="unix:/run/a").name == directory.identify(None, peer="unix:/b").name


def test_anonymous_callers_have_the_rights_and_limits_that_the_server_is_told() -> None:
    config = AccessConfig(
        anonymous_rights=(Right.SCORE, Right.UPDATE_WEIGHTS),
        anonymous_limits=TenantLimits(max_concurrent=3, weight=0.5),
    )
    assert TenantDirectory(config).identify(None, peer=PEER) == Tenant(
        name="peer:10.0.0.7",
        rights=frozenset({Right.SCORE, Right.UPDATE_WEIGHTS}),
        max_concurrent=3,
        weight=0.5,
    )


def test_addresses_of_one_ipv6_network_are_one_anonymous_tenant() -> None:
    directory = TenantDirectory(AccessConfig())
    names = {directory.identify(None, peer=f"ipv6:[2001:db8::{n:x}]:1").name for n in range(1, 50)}
    assert names == {"peer:2001:db8::/64"}


def test_a_key_is_its_tenants_from_any_address(tmp_path: Path) -> None:
    path, key, other = tmp_path / "access.toml", make_key(), make_key()
    write(path, "[tenants.a]\nweight = 3", table(key), table(other))
    directory = TenantDirectory(AccessConfig(file=path))
    for peer in (PEER, "unix:", "2001:db8::1"):
        assert directory.identify(key.reveal(), peer=peer) == Tenant(name="a", weight=3)
        assert directory.identify(other.reveal(), peer=peer) == Tenant(name="a", weight=3)


def test_with_a_file_no_key_and_wrong_keys_are_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "access.toml", make_key()
    write(path, "[tenants.a]", table(key))
    directory = TenantDirectory(AccessConfig(file=path))
    assert refused(directory, None) == "NO_KEY"
    wrong = [
        make_key().reveal(),
        "",
        "nonsense",
        key.reveal()[:-1],
        ApiKey(id=key.id, secret=make_key().secret).reveal(),
    ]
    for text in wrong:
        assert refused(directory, text) == "UNKNOWN_KEY"


def test_where_anonymous_callers_are_let_in_a_wrong_key_is_still_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "access.toml", make_key()
    write(path, "[tenants.a]", table(key))
    directory = TenantDirectory(AccessConfig(file=path, anonymous=True))
    assert directory.identify(None, peer=PEER).name == "peer:10.0.0.7"
    assert directory.identify(key.reveal(), peer=PEER).name == "a"
    assert refused(directory, make_key().reveal()) == "UNKNOWN_KEY"


def test_a_key_expires_while_the_server_runs(tmp_path: Path) -> None:
    path, key, clock = tmp_path / "access.toml", make_key(), Clock(-1)
    write(path, "[tenants.a]", table(key, more="expires = 2030-01-01"))
    directory = TenantDirectory(AccessConfig(file=path), now=clock.now)
    assert directory.identify(key.reveal(), peer=PEER).name == "a"
    clock.seconds = 0
    assert refused(directory, key.reveal()) == "EXPIRED_KEY"


def test_keys_are_added_rotated_and_revoked_without_a_restart(tmp_path: Path) -> None:
    path, old, new = tmp_path / "access.toml", make_key(), make_key()
    directory = None
    outcomes = []
    for parts in (
        [table(old)],
        [table(old), table(new)],
        [table(old, more="revoked = true"), table(new)],
        [table(new)],
    ):
        write(path, "[tenants.a]", *parts)
        directory = directory or TenantDirectory(AccessConfig(file=path))
        directory.refresh()
        found = []
        for key in (old, new):
            try:
                found.append(directory.identify(key.reveal(), peer=PEER).name)
            except UnauthenticatedError as error:
                found.append(error.reason)
        outcomes.append(found)
    assert outcomes == [["a", "UNKNOWN_KEY"], ["a", "a"], ["REVOKED_KEY", "a"], ["UNKNOWN_KEY", "a"]]


def test_limits_of_a_tenant_change_without_a_restart(tmp_path: Path) -> None:
    path, key = tmp_path / "access.toml", make_key()
    write(path, "[tenants.a]", table(key))
    directory = TenantDirectory(AccessConfig(file=path))
    write(path, "[tenants.a]\nweight = 2\nrights = ['look']", table(key))
    directory.refresh()
    assert directory.identify(key.reveal(), peer=PEER) == Tenant(name="a", weight=2, rights=frozenset({Right.LOOK}))


def test_a_broken_new_file_leaves_the_keys_in_force_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, key = tmp_path / "access.toml", make_key()
    write(path, "[tenants.a]", table(key))
    directory = TenantDirectory(AccessConfig(file=path))
    write(path, "[tenants.a")
    for _ in range(3):
        directory.refresh()
    assert directory.identify(key.reveal(), peer=PEER).name == "a"
    assert directory.num_reload_failures == 1
    [error] = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert f"{path}: is not TOML" in error


def test_a_mounted_secret_is_followed_when_its_links_are_swapped(tmp_path: Path) -> None:
    old, new = make_key(), make_key()
    for version, key in (("..1", old), ("..2", new)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "access.toml").write_text("[tenants.a]\n" + table(key))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "access.toml").symlink_to(Path("..data") / "access.toml")
    for file in (tmp_path, tmp_path / "access.toml"):
        (tmp_path / "..data").unlink()
        (tmp_path / "..data").symlink_to("..1")
        directory = TenantDirectory(AccessConfig(file=file))
        assert directory.identify(old.reveal(), peer=PEER).name == "a"
        (tmp_path / "swap").symlink_to("..2")
        os.replace(tmp_path / "swap", tmp_path / "..data")
        directory.refresh()
        assert directory.identify(new.reveal(), peer=PEER).name == "a"
        assert refused(directory, old.reveal()) == "UNKNOWN_KEY"


def test_a_file_added_to_a_folder_is_seen(tmp_path: Path) -> None:
    key = make_key()
    (tmp_path / "a.toml").write_text("[tenants.a]")
    directory = TenantDirectory(AccessConfig(file=tmp_path))
    (tmp_path / "keys.toml").write_text(table(key))
    directory.refresh()
    assert directory.identify(key.reveal(), peer=PEER).name == "a"


def test_a_file_that_is_missing_at_the_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="keys new --tenant NAME"):
        TenantDirectory(AccessConfig(file=tmp_path / "none.toml"))


@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o644, False), (0o664, True), (0o646, True)])
def test_a_file_that_others_can_write_is_warned_of_and_one_that_they_can_read_is_not(
    mode: int, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "access.toml"
    path.write_text("[tenants.a]\n" + table(make_key()))
    path.chmod(mode)
    TenantDirectory(AccessConfig(file=path))
    assert any("chmod go-w" in record.message for record in caplog.records) is is_told


def test_wrong_keys_are_slowed_down_and_the_right_key_of_a_neighbour_is_not(tmp_path: Path) -> None:
    path, key, late = tmp_path / "access.toml", make_key(), make_key()
    write(path, "[tenants.a]", table(key), table(late))
    clock = Clock()
    directory = TenantDirectory(AccessConfig(file=path), guesses=KeyGuesses(max_wrong=5, seconds_each=6, clock=clock))
    directory.identify(key.reveal(), peer=PEER)
    reasons = [refused(directory, make_key().reveal()) for _ in range(8)]
    assert reasons == ["UNKNOWN_KEY"] * 5 + ["TOO_MANY_WRONG_KEYS"] * 3
    for right in (key, late):  # whether or not it was seen from there before
        assert directory.identify(right.reveal(), peer=PEER).name == "a"
    clock.seconds += 30
    assert refused(directory, make_key().reveal()) == "UNKNOWN_KEY"


def test_expired_keys_are_no_guesses(tmp_path: Path) -> None:
    path, key = tmp_path / "access.toml", make_key()
    write(path, "[tenants.a]", table(key, more="expires = 2020-01-01"))
    directory = TenantDirectory(AccessConfig(file=path))
    assert {refused(directory, key.reveal()) for _ in range(50)} == {"EXPIRED_KEY"}


def test_no_key_is_in_any_log_or_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path, key = tmp_path / "access.toml", make_key()
    write(path, "[tenants.a]", table(key, more="revoked = true"))
    directory = TenantDirectory(AccessConfig(file=path))
    shown = [key.reveal(), make_key().reveal(), "Bearer " + key.reveal(), key.reveal() + "x"]
    told = []
    for text in shown:
        with pytest.raises(UnauthenticatedError) as raised:
            directory.identify(text, peer=PEER)
        told.append(str(raised.value))
    assert key.secret.reveal() not in caplog.text + "".join(told) + repr(vars(directory))


def test_keys_are_identified_without_a_gap_while_the_file_is_replaced_again_and_again(tmp_path: Path) -> None:
    """A key that stands in every version is never refused, and what the last one revokes is refused in the end."""
    path, key, doomed = tmp_path / "access.toml", make_key(), make_key()
    write(path, "[tenants.a]", table(key), table(doomed))
    directory = TenantDirectory(AccessConfig(file=path))

    def replace() -> None:
        for number in range(300):
            broken = "[" if number % 3 == 0 else ""
            write(path, f"[tenants.a]\nweight = {1 + number % 7}", table(key), table(doomed), broken)
        write(path, "[tenants.a]\nweight = 9", table(key), table(doomed, more="revoked = true"))

    writer, reloader = threading.Thread(target=replace), Reloader([directory], seconds=0.001)
    reloader.start()
    writer.start()
    try:
        while writer.is_alive() or directory.identify(key.reveal(), peer=PEER).weight != 9:
            directory.identify(key.reveal(), peer=PEER)
    finally:
        writer.join()
        reloader.stop()
    assert refused(directory, doomed.reveal()) == "REVOKED_KEY"
    assert directory.num_reloads >= 1
