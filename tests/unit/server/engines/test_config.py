"""The choice among engines, from a file, from the environment and from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor_server.config import ServerConfig
from preceptor_server.engines.config import EngineConfig, HfConfig, OwnEngineConfig, VllmConfig

VARIABLE = "PRECEPTOR_SERVER_ENGINE__"


def load(*arguments: str) -> ServerConfig:
    return load_settings(ServerConfig, list(arguments), program="preceptor-server")


def engine_of(*arguments: str) -> EngineConfig:
    [settings] = load(*arguments).hosted.values()
    return settings.engine


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(InvalidSettingsError) as caught:
        load(*arguments)
    return [line.strip() for line in str(caught.value).splitlines()[1:-1]]


EXPECTED = {
    "hf": (HfConfig(model="m", gguf_file="w.gguf", max_model_len=9), {"gguf_file": "w.gguf"}),
    "vllm": (
        VllmConfig(model="m", path="fast", arguments={"a": 1, "b": {"c": [2]}}, max_model_len=9),
        {"path": "fast", "arguments": '{"a": 1, "b": {"c": [2]}}'},
    ),
    "mine:Engine": (
        OwnEngineConfig(kind="mine:Engine", options={"x": 1.5, "y": True}, max_model_len=9),
        {"options": '{"x": 1.5, "y": true}'},
    ),
}


def settings_of(kind: str) -> dict[str, str]:
    model = {} if ":" in kind else {"model": "m"}
    return {"kind": kind, "max_model_len": "9", **model, **EXPECTED[kind][1]}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_engine_is_set_from_the_command_line(kind: str) -> None:
    options = [f"--engine.{name.replace('_', '-')}={value}" for name, value in settings_of(kind).items()]
    assert engine_of(*options) == EXPECTED[kind][0]


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_engine_is_set_from_the_environment(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_of(kind).items():
        monkeypatch.setenv(VARIABLE + name.upper(), value)
    assert engine_of() == EXPECTED[kind][0]


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("table", ["engine", "teachers.professor.engine"])
def test_each_engine_is_set_from_a_file(kind: str, table: str, tmp_path: Path) -> None:
    tables = {"arguments": "a = 1\nb = {c = [2]}", "options": "x = 1.5\ny = true"}
    given = settings_of(kind)
    lines = [
        f"{name} = {value if value.isdigit() else repr(value)}" for name, value in given.items() if name not in tables
    ]
    nested = [f"[{table}.{name}]\n{text}" for name, text in tables.items() if name in given]
    path = tmp_path / "teacher.toml"
    path.write_text("\n".join([f"[{table}]", *lines, *nested]))
    assert engine_of("@", str(path)) == EXPECTED[kind][0]


def test_the_three_sources_add_up_and_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "teacher.toml"
    path.write_text('[engine]\nkind = "vllm"\nmodel = "of the file"\nmax_model_len = 7\n[engine.arguments]\na = 1\n')
    monkeypatch.setenv(VARIABLE + "MODEL", "of the environment")
    monkeypatch.setenv(VARIABLE + "MAX_MODEL_LEN", "8")
    engine = engine_of("@", str(path), "--engine.max-model-len", "9")
    assert engine == VllmConfig(model="of the environment", max_model_len=9, arguments={"a": 1})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"kind": "vllm", "model": "m", "gguf_file": "w.gguf"},
            "engine.gguf_file is not a setting of kind=vllm, but of kind=hf: leave it out",
        ),
        (
            {"kind": "vllm", "model": "m", "self_test_seconds": "5"},
            "engine.self_test_seconds is not a setting of kind=vllm, but of kind=hf and kind=package.module:Name: "
            "leave it out",
        ),
        ({"model": "m", "path": "fast"}, "engine.path is not a setting of kind=hf, but of kind=vllm: leave it out"),
        (
            {"kind": "mine:Engine", "device": "cpu"},
            "engine.device is not a setting of kind=package.module:Name, but of kind=hf: leave it out",
        ),
        ({"kind": "vllm"}, "engine: model is required: set engine.model to a hub id or a folder"),
        ({"model": ""}, "engine: model is required: set engine.model to a hub id or a folder"),
        (
            {"kind": "vlm", "model": "m"},
            "engine.kind='vlm' is not an engine: write hf, vllm, or package.module:Name of your class",
        ),
        ({"model": "m", "max_model_len": "long"}, "engine.max_model_len: must be a whole number (given: 'long')"),
    ],
)
def test_what_an_engine_does_not_honour_is_refused_by_name(settings: dict[str, str], told: str) -> None:
    assert mistakes(*(f"--engine.{name.replace('_', '-')}={value}" for name, value in settings.items())) == [told]


def test_mistakes_in_one_of_several_teachers_are_named_with_the_teacher(tmp_path: Path) -> None:
    path = tmp_path / "teachers.toml"
    path.write_text(
        '[teachers.a.engine]\nkind = "vllm"\nmodel = "m"\npacking = "auto"\n'
        '[teachers.b.engine]\nmodel = "m"\npakcing = "auto"\n'
        "[teachers.c]\n"
    )
    assert mistakes("@", str(path)) == [
        "teachers.a.engine.packing is not a setting of kind=vllm, but of kind=hf: leave it out",
        "teachers.b.engine.pakcing: there is no such setting; did you mean teachers.b.engine.packing?",
        "teachers.c.engine: model is required: set engine.model to a hub id or a folder",
    ]


def test_a_mistyped_option_of_any_engine_is_recognised() -> None:
    assert mistakes("--engine.argumnets", "{}") == [
        "there is no option --engine.argumnets; did you mean --engine.arguments?"
    ]


def test_a_text_in_place_of_the_table_is_told(tmp_path: Path) -> None:
    path = tmp_path / "teacher.toml"
    path.write_text('engine = "hf"\n')
    assert mistakes("@", str(path)) == ["engine: is a table of settings, [engine] (given: 'hf')"]


def test_help_names_every_setting_of_every_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("--help")
    text = " ".join(capsys.readouterr().out.split())
    for engine in (HfConfig, VllmConfig, OwnEngineConfig):
        for name, field in engine.model_fields.items():
            assert f"--engine.{name.replace('_', '-')} " in text
            assert field.description, f"{engine.__name__}.{name} has no docstring"
    assert "kind=vllm: vLLM's engine arguments by their own names" in text
    assert f"of kind=vllm: {', '.join(name for name in VllmConfig.model_fields if name != 'kind')}; of" in text
