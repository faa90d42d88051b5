from __future__ import annotations

from pathlib import Path

import pytest
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor_server.tenants.config import AccessConfig, TlsConfig
from preceptor_server.tenants.tenant import ALL_BUT_UPDATE, Right, Tenant
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """As the server's."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="TENANTS_TEST_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    access: AccessConfig = AccessConfig()
    tls: TlsConfig = TlsConfig()


def load(*arguments: str) -> Settings:
    return load_settings(Settings, list(arguments), program="test")


def test_without_settings_nobody_needs_a_key_and_there_is_no_tls() -> None:
    settings = load()
    assert not settings.access.requires_key
    assert not settings.tls.is_on
    assert frozenset(settings.access.anonymous_rights) == ALL_BUT_UPDATE


@pytest.mark.parametrize(
    ("arguments", "requires_key"),
    [
        (["--access.file", "a.toml"], True),
        (["--access.file", "a.toml", "--access.anonymous", "true"], False),
        (["--access.anonymous", "true"], False),
    ],
)
def test_a_file_makes_keys_required_unless_anonymous_callers_are_let_in(
    arguments: list[str], requires_key: bool
) -> None:
    assert load(*arguments).access.requires_key is requires_key


def test_settings_come_from_toml_the_environment_and_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[access]\nanonymous_rights = ["look"]\n[access.anonymous_limits]\nmax_concurrent = 4\n')
    monkeypatch.setenv("TENANTS_TEST_ACCESS__ANONYMOUS_LIMITS__TOKENS_PER_SECOND", "100")
    access = load("@", str(file), "--access.anonymous-limits.weight", "0.5").access
    assert access.anonymous_limits.to_tenant("x", rights=access.anonymous_rights) == Tenant(
        name="x", weight=0.5, rights=frozenset({Right.LOOK}), tokens_per_second=100.0, max_concurrent=4
    )


def test_a_list_of_rights_is_taken_from_the_command_line() -> None:
    access = load("--access.anonymous-rights", '["score", "update_weights"]').access
    assert access.anonymous_rights == (Right.SCORE, Right.UPDATE_WEIGHTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "access = { file = 'a', anonymous_rights = ['look'] }",
            r"anonymous_rights is set, and callers without a key are refused: set access\.anonymous=true",
        ),
        (
            "access = { file = 'a', anonymous_limits = { weight = 2 } }",
            r"anonymous_limits is set, .* or leave access\.anonymous_limits out",
        ),
        ("access.anonymous_limits.weight = 0", r"access\.anonymous_limits\.weight: must be greater than 0"),
        ("access.anonymous_limits.max_concurrent = 0", r"max_concurrent: must be greater than or equal to 1"),
        ("access.anonymous_rights = ['scores']", r"access\.anonymous_rights\.0: must be 'score', 'register', 'look'"),
        ("access.ipv6_prefix = 129", r"access\.ipv6_prefix: must be less than or equal to 128"),
        ("tls.certificate = 'c'", r"certificate is set and key is not: set tls\.key too"),
        ("tls.key = 'k'", r"key is set and certificate is not: set tls\.certificate too"),
        (
            "tls = { client_ca = 'a', require_client_certificate = true }",
            r"there is no TLS: set tls\.certificate and tls\.key",
        ),
        (
            "tls = { certificate = 'c', key = 'k', require_client_certificate = true }",
            r"client_ca is not: set tls\.client_ca",
        ),
        (
            "tls = { certificate = 'c', key = 'k', client_ca = 'a' }",
            r"nobody is asked for a certificate: set tls\.require_client_certificate=true",
        ),
    ],
)
def test_settings_that_do_not_fit_together_name_the_way_out(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(InvalidSettingsError, match=message):
        load("@", str(file))
