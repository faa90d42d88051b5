from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_server.observability.config import ObserveConfig
from pydantic import ValidationError


def test_nothing_listens_and_nothing_is_traced_unless_it_is_asked_for() -> None:
    config = ObserveConfig()
    assert (config.port, config.otlp_endpoint, config.log_prompts, config.log_format) == (None, None, False, "text")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org"])
def test_a_public_host_needs_the_flag(host: str) -> None:
    with pytest.raises(ValidationError, match="or allow_insecure=true"):
        ObserveConfig(host=host, port=0)
    assert ObserveConfig(host=host, port=0, allow_insecure=True).host == host


@pytest.mark.parametrize(("name", "value"), [("host", "::1"), ("stuck_seconds", 5.0), ("allow_insecure", True)])
def test_what_would_be_ignored_without_a_port_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=f"{name} is set, and there is no listener: set observe.port"):
        ObserveConfig.model_validate({name: value})


def test_an_address_file_needs_its_folder_and_a_port(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="does not exist"):
        ObserveConfig(port=0, address_file=tmp_path / "none" / "address")
    with pytest.raises(ValidationError, match="address_file is set"):
        ObserveConfig(address_file=tmp_path / "address")
    assert ObserveConfig(port=0, address_file=tmp_path / "address").address_file == tmp_path / "address"


@pytest.mark.parametrize("endpoint", ["", "collector:4318", "ftp://collector", "http://", "localhost"])
def test_a_collectors_address_is_a_url(endpoint: str) -> None:
    with pytest.raises(ValidationError, match=r"write it as http://host:4318/v1/traces"):
        ObserveConfig(otlp_endpoint=endpoint)


def test_a_password_in_the_collectors_address_is_refused_since_settings_are_logged() -> None:
    with pytest.raises(ValidationError, match="OTEL_EXPORTER_OTLP_HEADERS"):
        ObserveConfig(otlp_endpoint="https://user:secret@collector/v1/traces")


def test_a_share_without_a_collector_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"set observe\.otlp_endpoint"):
        ObserveConfig(trace_share=0.5)
    assert ObserveConfig(trace_share=0.5, otlp_endpoint="http://127.0.0.1:4318/v1/traces").trace_share == 0.5
