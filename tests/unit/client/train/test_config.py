from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from preceptor.settings import InvalidSettingsError, dump_settings, load_settings
from preceptor_client.train.run.config import RunConfig
from pydantic import BaseModel

MINIMAL = """
[student]
model = "student"
[teacher]
address = "127.0.0.1:50051"
[data]
train = "train.jsonl"
[rollout]
prompts_per_step = 4
max_new_tokens = 16
[optimizer]
learning_rate = 2e-5
[run]
directory = "run"
num_steps = 10
"""


def _load(tmp_path: Path, *options: str, toml: str = MINIMAL) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_text(toml)
    return load_settings(RunConfig, ["@", str(path), *options], program="preceptor train")


def test_file_and_command_line_are_read_with_the_command_line_above(tmp_path: Path) -> None:
    config = _load(tmp_path, "--optimizer.learning-rate", "1e-4")
    assert config.optimizer.learning_rate == 1e-4
    assert config.rollout.prompts_per_step == 4
    assert config.rollout.top_p == 0.9


def test_environment_is_above_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECEPTOR_TEACHER__ADDRESS", "elsewhere:1")
    assert _load(tmp_path).teacher.address == "elsewhere:1"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--run.num-steps", "many"], "run.num_steps"),
        (["--teacher.top-k", "1"], "nothing would be learnt"),
        (["--rollout.top-p", "0"], "rollout.top_p"),
        (["--evaluation.every-steps", "2"], "set data.heldout"),
        (["--evaluation.loss", "true"], "evaluation.loss is set.*set data.heldout"),
        (["--teacher.segmentation", "magic"], "teacher.segmentation"),
        (["--teacher.page", "teacher:8080"], "teacher.page: .*write http://HOST:PORT"),
        (["--teacher.paper-tokens", '[""]'], "at least one text, and none that is empty"),
        (["--teacher.paper-tokens", "[]"], "at least one text, and none that is empty"),
        (["--teacher.end-token-ids", "[-1]"], "must hold ids, which are 0 or above"),
        (["--rollout.responses-per-prompt", "17"], "rollout.batch_size=16"),
        (["--optimizer.warmup-steps", "11"], "run.num_steps=10"),
        (["--objective.kind", "magic"], "objective.kind"),
        (["--data.prompt-field", "question"], r"^  data\.prompt_field is for a named dataset, and none is read"),
        (["--data.train", "org/set", "--data.heldout-split", "dev"], r"data\.heldout_split is for a named dataset"),
        (["--optimizer.betas", "[0.9, 1.0]"], r"optimizer\.betas\.1: must be less than 1"),
        (["--optimizer.learning-rate", "inf"], r"optimizer\.learning_rate: must be a finite number"),
        (["--run.directory", ""], r"run\.directory: must not be empty"),
        (["--teacher.paper-tokens", '["a"]'], r"^  teacher\.paper_tokens is for segmentation=paper, not for auto"),
    ],
)
def test_unusable_setting_is_refused_and_named(tmp_path: Path, options: list[str], expected: str) -> None:
    with pytest.raises(InvalidSettingsError, match=f"(?m){expected}"):
        _load(tmp_path, *options)


def test_end_tokens_and_pairs_are_read_from_file_and_command_line(tmp_path: Path) -> None:
    toml = MINIMAL.replace('model = "student"', 'model = "student"\nend_token_ids = [5, 2]')
    toml = toml.replace("[data]", '[teacher.special_pairs]\n"<|im_start|>" = "<start_of_turn>"\n[data]')
    config = _load(tmp_path, "--teacher.end-token-ids", "[7]", toml=toml)
    assert config.student.end_token_ids == (5, 2)
    assert config.teacher.end_token_ids == (7,)
    assert config.teacher.special_pairs == {"<|im_start|>": "<start_of_turn>"}
    assert config.teacher.segmentation == "auto"


def test_settings_of_a_named_dataset_are_taken_where_one_is_read(tmp_path: Path) -> None:
    options = ["--data.train", "org/set", "--data.train-split", "all", "--data.prompt-field", "question"]
    assert _load(tmp_path, *options).data.prompt_field == "question"
    options = ["--data.heldout", "org/set", "--data.heldout-split", "dev", "--data.answer-field", "solution"]
    assert _load(tmp_path, *options).data.heldout_split == "dev"


def test_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"rollout\.beams"):
        _load(tmp_path, toml=MINIMAL.replace("prompts_per_step = 4", "prompts_per_step = 4\nbeams = 3"))


def test_missing_value_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"(?m)^  optimizer\.learning_rate: is not set, and has no default$"):
        _load(tmp_path, toml=MINIMAL.replace("learning_rate = 2e-5", ""))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"absent\.toml does not exist"):
        load_settings(RunConfig, ["@", str(tmp_path / "absent.toml")], program="preceptor train")


def test_every_field_has_help() -> None:
    for name, section in RunConfig.model_fields.items():
        assert section.description, name
        for section_type in _sections_in(section.annotation):
            for key, field in section_type.model_fields.items():
                assert field.description, f"{name}.{key}"


def _sections_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections_in(part)]


def test_every_section_is_among_those_whose_help_is_looked_at() -> None:
    found = {one.__name__ for field in RunConfig.model_fields.values() for one in _sections_in(field.annotation)}
    assert {"StudentConfig", "TeacherConfig", "TaskConfig", "EnvironmentConfig", "PartConfig", "RunSection"} <= found


def test_settings_data_and_report_import_without_torch() -> None:
    code = (
        "import sys, preceptor_client.cli, preceptor_client.train.run.config, preceptor_client.train.data.examples, "
        "preceptor_client.train.report\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SECRET = "prk_0123_c2VjcmV0"


@pytest.mark.parametrize(
    "toml",
    [
        MINIMAL.replace("[data]", f'api_key = "{SECRET}"\n[data]'),
        MINIMAL.replace("[data]", f'api_key_file = "{SECRET}"\n[data]'),
        MINIMAL + f'[teachers.law]\napi_key = "{SECRET}"\n',
        MINIMAL + f'[tasks.one.teacher]\napi_key = "{SECRET}"\n',
    ],
)
def test_key_in_the_settings_is_refused_with_where_it_belongs_and_not_repeated(tmp_path: Path, toml: str) -> None:
    with pytest.raises(
        InvalidSettingsError, match=r"teacher\.api_key\b.* into a|teacher\.api_key_file: holds what"
    ) as raised:
        _load(tmp_path, toml=toml)
    assert SECRET not in str(raised.value)


def test_key_in_the_environment_of_a_setting_or_on_the_command_line_is_refused_likewise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSettingsError, match=r"no option --teacher\.api-key; did you mean") as raised:
        _load(tmp_path, "--teacher.api-key", SECRET)
    assert SECRET not in str(raised.value)
    monkeypatch.setenv("PRECEPTOR_TEACHER__API_KEY", SECRET)
    with pytest.raises(InvalidSettingsError, match=r"teacher\.api_key: .* the variable PRECEPTOR_API_KEY") as raised:
        _load(tmp_path)
    assert SECRET not in str(raised.value)


def test_key_of_the_environment_is_no_setting_and_stands_in_no_saved_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRECEPTOR_API_KEY", SECRET)
    monkeypatch.setenv("PRECEPTOR_API_KEY_FILE", "/run/secrets/key")
    config = _load(tmp_path, "--teacher.api-key-file", "key.txt")
    assert config.teacher.api_key_file == Path("key.txt")
    assert SECRET not in repr(dump_settings(config))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--teacher.cert", "a.pem"], r"^  teacher\.cert and teacher\.cert_key go together"),
        (["--teacher.cert-key", "a.pem"], r"^  teacher\.cert and teacher\.cert_key go together"),
        (["--teacher.cache-mode", "offline"], r"^  teacher\.cache_mode=offline is for a cache: set teacher\.cache"),
        (["--teacher.cache-bytes", "1"], r"teacher\.cache_bytes"),
        (["--teacher.hedge-seconds", "0"], r"teacher\.hedge_seconds"),
        (["--teacher.ca", ""], r"teacher\.ca: must not be empty"),
    ],
)
def test_settings_of_the_connection_that_do_not_fit_are_named(
    tmp_path: Path, options: list[str], expected: str
) -> None:
    with pytest.raises(InvalidSettingsError, match=f"(?m){expected}"):
        _load(tmp_path, *options)
