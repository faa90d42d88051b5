from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor_server.config import ServerConfig
from preceptor_server.engines.config import EngineConfig, HfConfig, OwnEngineConfig

from tests.engines.fake import FAKE_KIND, fake_arguments

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted(path for folder in ("deploy", "studies") for path in (REPOSITORY / folder).rglob("teacher*.toml"))

FAKE = fake_arguments()


def load(*arguments: str) -> ServerConfig:
    return load_settings(ServerConfig, list(arguments), program="preceptor-server")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "", "127.0.0.1.evil.org"])
def test_public_host_is_refused_and_the_way_out_named(host: str) -> None:
    with pytest.raises(InvalidSettingsError, match=r"listen: .*set host=127\.0\.0\.1, or allow_insecure=true"):
        load(*FAKE, "--listen.host", host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "example.org"])
def test_public_host_is_taken_where_insecurity_is_allowed(host: str) -> None:
    assert load(*FAKE, "--listen.host", host, "--listen.allow-insecure", "true").listen.host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_permission(host: str) -> None:
    config = load(*FAKE, "--listen.host", host)
    assert config.listen.host == host
    assert not config.listen.allow_insecure


def test_hf_needs_a_model() -> None:
    with pytest.raises(InvalidSettingsError, match=r"engine: .*set engine\.model to a hub id or a folder"):
        load("--engine.kind", "hf")


def engine_of(config: ServerConfig) -> EngineConfig:
    [settings] = config.hosted.values()
    return settings.engine


def test_hf_is_the_default_engine_and_takes_a_model() -> None:
    config = load("--engine.model", "/models/tiny")
    assert engine_of(config) == HfConfig(model="/models/tiny")


def test_an_engine_of_ones_own_needs_no_model() -> None:
    assert engine_of(load(*FAKE)) == OwnEngineConfig(kind=FAKE_KIND)


def test_engine_has_no_default() -> None:
    with pytest.raises(InvalidSettingsError, match=r"engine: .*set engine\.model to a hub id or a folder"):
        load()


def test_queue_smaller_than_a_group_names_both_settings_and_their_values() -> None:
    with pytest.raises(
        InvalidSettingsError,
        match=r"scheduler\.max_queue_tokens=99 is below limits\.max_group_tokens=100, .*raise one or lower the other",
    ):
        load(*FAKE, "--scheduler.max-queue-tokens", "99", "--limits.max-group-tokens", "100")


def test_queue_as_large_as_the_largest_group_is_enough() -> None:
    config = load(*FAKE, "--scheduler.max-queue-tokens", "100", "--limits.max-group-tokens", "100")
    assert config.scheduler.max_queue_tokens == config.limits.max_group_tokens == 100


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("listen.port", "65536"),
        ("listen.port", "-1"),
        ("engine.dtype", "float16"),
        ("engine.rows-per-head-chunk", "0"),
        ("engine.max-model-len", "1"),
        ("scheduler.max-batch-tokens", "0"),
        ("scheduler.batch-window-ms", "-0.1"),
        ("limits.max-top-k", "1"),
        ("limits.max-message-bytes", "2147483648"),
        ("log-level", "LOUD"),
    ],
)
def test_value_out_of_bounds_is_named(option: str, value: str) -> None:
    key = option.replace("-", "_").replace(".", r"\.")
    with pytest.raises(InvalidSettingsError, match=rf"(?m)^  {key}: "):
        load("--engine.model", "m", f"--{option}={value}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--engine.kind", "vllm", "--engine.model", "m", "--scheduler.max-batch-tokens", "9"],
            "scheduler.max_batch_tokens is not for engine.kind=vllm, .* set max_num_batched_tokens in engine.arg",
        ),
        (
            ["--engine.kind", "vllm", "--engine.model", "m", "--scheduler.batch-window-ms", "9"],
            "scheduler.batch_window_ms is not for engine.kind=vllm",
        ),
    ],
)
def test_setting_that_this_engine_does_not_read_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidSettingsError, match=message):
        load(*arguments)


@pytest.mark.parametrize("section", ["listen", "http"])
def test_address_file_in_a_folder_that_is_missing_is_told_before_the_model_is_loaded(
    section: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidSettingsError, match=rf"{section}\.address_file: folder {tmp_path}/none does not exist"):
        load(*FAKE, f"--{section}.address-file", str(tmp_path / "none" / "address"))


def test_environment_sets_a_nested_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_SERVER_ENGINE__KIND", FAKE_KIND)
    monkeypatch.setenv("PRECEPTOR_SERVER_LISTEN__PORT", "0")
    config = load()
    assert (engine_of(config).kind, config.listen.port) == (FAKE_KIND, 0)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_shipped_settings_of_a_teacher_load(path: Path) -> None:
    written = tomllib.loads(path.read_text())
    # A file may leave its model's folder to whoever starts the server.
    is_complete = "model" in written["engine"]
    config = load("@", str(path), *([] if is_complete else ["--engine.model", "/models/theirs"]))
    resolved = engine_of(config).model_dump(mode="json")
    for name, value in written["engine"].items():
        table = resolved[name]
        assert ({key: table[key] for key in value} if isinstance(value, dict) else table) == value
