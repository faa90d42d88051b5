from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any

import pytest
from preceptor.settings import dump_settings, load_settings
from preceptor_client.train.errors import RunDirectoryError
from preceptor_client.train.record.settings_file import to_toml
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.run.directory import claimed_directory

Settings = dict[str, dict[str, Any]]  # Any: the leaves are whatever TOML holds


def test_saved_settings_load_as_the_same_settings(config: RunConfig) -> None:
    with claimed_directory(config) as directory:
        path = directory / "config.toml"
    again = load_settings(RunConfig, ["@", str(path)], program="test")
    assert dump_settings(again) == dump_settings(config)
    assert tomllib.loads(path.read_text())["optimizer"]["learning_rate"] == 1e-3


def test_pairs_and_characters_of_every_kind_survive_the_file(settings: Settings) -> None:
    pairs = {'a "quoted" \\ one': "｜end｜", "\U0001f642\x7f\n": "<|x|>"}
    settings["teacher"]["special_pairs"] = pairs
    config = RunConfig.model_validate(settings)
    for _ in range(2):
        with claimed_directory(config) as directory:
            saved = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
        assert saved["teacher"]["special_pairs"] == pairs
    again = load_settings(RunConfig, ["@", str(directory / "config.toml")], program="test")
    assert again.teacher.special_pairs == pairs


def begin(directory: Path) -> None:
    (directory / "metrics.jsonl").write_text('{"kind": "heldout", "step": 0}\n')


def test_an_attempt_that_never_began_leaves_room_for_other_settings(settings: Settings) -> None:
    with claimed_directory(RunConfig.model_validate(settings)) as directory:
        (directory / "metrics.jsonl").touch()
    settings["optimizer"]["learning_rate"] = 2e-3
    with claimed_directory(RunConfig.model_validate(settings)):
        saved = tomllib.loads((directory / "config.toml").read_text())
    assert saved["optimizer"]["learning_rate"] == 2e-3


def test_same_settings_may_come_back_and_others_may_not(settings: Settings) -> None:
    with claimed_directory(RunConfig.model_validate(settings)) as directory:
        begin(directory)
    settings["run"]["num_steps"] = 12
    settings["teacher"] |= {"address": "elsewhere:1", "page": "http://elsewhere:8080"}
    with claimed_directory(RunConfig.model_validate(settings)):
        pass
    settings["optimizer"]["learning_rate"] = 2e-3
    with (
        pytest.raises(RunDirectoryError, match=r"optimizer\.learning_rate was 0\.001, is 0\.002"),
        claimed_directory(RunConfig.model_validate(settings)),
    ):
        pass


def test_directory_of_a_run_is_refused_without_resume(settings: Settings) -> None:
    with claimed_directory(RunConfig.model_validate(settings)) as directory:
        begin(directory)
    settings["run"]["resume"] = False
    with pytest.raises(RunDirectoryError, match="holds a run"), claimed_directory(RunConfig.model_validate(settings)):
        pass


def test_two_processes_do_not_share_a_directory(config: RunConfig) -> None:
    with (
        claimed_directory(config),
        pytest.raises(RunDirectoryError, match="another process is training"),
        claimed_directory(config),
    ):
        pass


def test_log_lands_in_the_directory_and_nowhere_after(config: RunConfig) -> None:
    logger = logging.getLogger("preceptor_client.somewhere")
    with claimed_directory(config) as directory:
        logger.info("step=%d", 7)
    logger.info("too late")
    text = Path(directory / "train.log").read_text()
    assert "INFO preceptor_client.somewhere step=7" in text
    assert "too late" not in text


def test_lists_of_parts_with_options_of_any_depth_survive_the_file(settings: Settings) -> None:
    options = {"weights": {"a b": [1, 2.5, "x"], "none": None, "deep": [{"on": True, "off": None}]}}
    settings["data"]["heldout"] = "unused.jsonl"
    settings["evaluation"]["metrics"] = [{"kind": "mine:Metric", "options": options}, {"kind": "match"}]
    config = RunConfig.model_validate(settings)
    for _ in range(2):
        with claimed_directory(config) as directory:
            begin(directory)
    again = load_settings(RunConfig, ["@", str(directory / "config.toml")], program="test")
    first, second = again.evaluation.metrics
    assert first.options == {"weights": {"a b": [1, 2.5, "x"], "deep": [{"on": True}]}}
    assert (first.kind, second.kind, second.options) == ("mine:Metric", "match", {})


def test_lists_of_tables_are_toml() -> None:
    settings = {"run": {"num_steps": 3}, "hooks": [{"kind": "a:B", "options": {"x": [1]}}, {"kind": "c:D"}], "none": []}
    assert tomllib.loads(to_toml(settings)) == {key: value for key, value in settings.items() if value}


def test_a_disk_that_is_full_at_the_start_is_told_with_the_folder_and_the_way_out(config: RunConfig) -> None:
    """The system's own message names no file."""
    full = rf"run\.directory: {config.run.directory} has no room left .*No space left on device.* the same command"
    with pytest.raises(RunDirectoryError, match=full), claimed_directory(config):
        Path("/dev/full").write_text("a row")


def test_other_errors_of_the_system_are_told_as_they_are(config: RunConfig) -> None:
    with pytest.raises(FileNotFoundError), claimed_directory(config) as directory:
        (directory / "nothing").read_text()
