from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import pytest
from preceptor.settings import InvalidSettingsError, Section, dump_settings, load_settings
from preceptor_client.train.run.config import RunConfig
from preceptor_server.config import ServerConfig
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tests.engines.fake import fake_arguments


class OvenConfig(Section):
    """The oven."""

    degrees: int = Field(180, ge=50, le=300)
    """How hot, in degrees Celsius."""
    grill: bool = False
    """Whether it grills."""
    rack: Literal["low", "middle"] = "middle"
    """Where the tin stands."""
    tin: Path | None = None
    """Folder of the tin."""

    @model_validator(mode="after")
    def _does_not_burn(self) -> Self:
        if (self.degrees, self.rack) == (300, "low"):
            raise ValueError("oven.rack=low burns at oven.degrees=300")
        return self


class CakeConfig(BaseSettings):
    """Bakes a cake."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="CAKE_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=True,
    )

    name: str
    """What it is called."""
    eggs: int = 3
    """How many eggs."""
    oven: OvenConfig = OvenConfig()
    """The oven."""

    @model_validator(mode="after")
    def _eggs_bear_the_heat(self) -> Self:
        if not self.eggs and self.oven.degrees > 190:
            raise ValueError("eggs=0 needs a cool oven: set oven.degrees=50")
        return self


def load(*arguments: str) -> CakeConfig:
    return load_settings(CakeConfig, list(arguments), program="cake")


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture
def sponge(tmp_path: Path) -> str:
    return write(tmp_path / "sponge.toml", 'name = "sponge"\neggs = 4\n[oven]\ndegrees = 170\nrack = "low"\n')


@pytest.fixture
def hotter(tmp_path: Path) -> str:
    return write(tmp_path / "hotter.toml", "[oven]\ndegrees = 210\n")


def test_default_stands_where_nothing_else_is_said() -> None:
    settings = load("--name", "plain")
    assert (settings.name, settings.eggs, settings.oven.degrees, settings.oven.rack) == ("plain", 3, 180, "middle")


def test_toml_beats_the_default(sponge: str) -> None:
    settings = load("@", sponge)
    assert (settings.name, settings.eggs, settings.oven.degrees) == ("sponge", 4, 170)


def test_later_file_beats_the_earlier_and_leaves_its_other_keys(sponge: str, hotter: str) -> None:
    settings = load("@", sponge, "@", hotter)
    assert (settings.name, settings.eggs) == ("sponge", 4)
    assert (settings.oven.degrees, settings.oven.rack) == (210, "low")


def test_order_of_files_decides(sponge: str, hotter: str) -> None:
    assert load("@", hotter, "@", sponge).oven.degrees == 170


def test_environment_beats_toml(sponge: str, hotter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAKE_OVEN__DEGREES", "150")
    monkeypatch.setenv("CAKE_EGGS", "5")
    settings = load("@", sponge, "@", hotter)
    assert (settings.eggs, settings.oven.degrees, settings.oven.rack) == (5, 150, "low")


def test_command_line_beats_the_environment(sponge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAKE_OVEN__DEGREES", "150")
    monkeypatch.setenv("CAKE_EGGS", "5")
    settings = load("@", sponge, "--oven.degrees", "99")
    assert (settings.eggs, settings.oven.degrees, settings.oven.rack) == (5, 99, "low")


def test_result_is_of_the_type_that_was_asked_for_and_frozen(sponge: str) -> None:
    settings = load("@", sponge)
    assert type(settings) is CakeConfig
    with pytest.raises(ValidationError, match="frozen"):
        settings.__setattr__("eggs", 1)


def test_dump_is_the_resolved_settings_as_plain_data(sponge: str) -> None:
    settings = load("@", sponge, "--oven.grill", "true")
    assert dump_settings(settings) == {
        "name": "sponge",
        "eggs": 4,
        "oven": {"degrees": 170, "grill": True, "rack": "low", "tin": None},
    }


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "x"\negs = 3\n', "egs"),
        ('name = "x"\n[oven]\ndegree = 3\n', "oven.degree"),
        ("eggs = 3\n", "name"),
        ('name = "x"\neggs = "many"\n', "eggs"),
        ('name = "x"\n[oven]\ndegrees = 20\n', "oven.degrees"),
        ('name = "x"\n[oven]\nrack = "top"\n', "oven.rack"),
    ],
    ids=["unknown key", "unknown key in a table", "missing", "wrong type", "out of bounds", "not a choice"],
)
def test_wrong_setting_is_named(text: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=rf"(?m)^  {key}: ") as caught:
        load("@", write(tmp_path / "wrong.toml", text))
    assert str(caught.value).startswith("cake: 1 setting(s) cannot be used")


def test_wrong_value_is_repeated_so_that_it_can_be_found(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"given: 'many'"):
        load("@", write(tmp_path / "wrong.toml", 'name = "x"\neggs = "many"\n'))


def test_wrong_value_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAKE_OVEN__DEGREES", "warm")
    with pytest.raises(InvalidSettingsError, match=r"oven\.degrees"):
        load("--name", "x")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('name = "x"\negs = 3\n', "egs: there is no such setting; did you mean eggs?"),
        ('name = "x"\n[oven]\ndegree = 3\n', "oven.degree: there is no such setting; did you mean oven.degrees?"),
        ('name = "x"\nzzz = 3\n', "zzz: there is no such setting"),
        ("eggs = 3\n", "name: is not set, and has no default"),
        ('name = "x"\neggs = "many"\n', "eggs: must be a whole number (given: 'many')"),
        ('name = "x"\n[oven]\ndegrees = 20\n', "oven.degrees: must be greater than or equal to 50 (given: 20)"),
        ('name = "x"\n[oven]\ndegrees = true\n', "oven.degrees: must be a number, not true or false (given: True)"),
        ('name = "x"\n[oven]\nrack = "top"\n', "oven.rack: must be 'low' or 'middle' (given: 'top')"),
        ('name = "x"\n[oven]\ngrill = "perhaps"\n', "oven.grill: must be true or false (given: 'perhaps')"),
        ('name = "x"\n[oven]\ntin = ""\n', "oven.tin: must not be empty: write . for the current folder"),
        ('name = "x"\noven = 3\n', "oven: is a table of settings, [oven] (given: 3)"),
        ('name = "x"\n[oven]\ndegrees = 300\nrack = "low"\n', "oven.rack=low burns at oven.degrees=300"),
        ('name = "x"\neggs = 0\n[oven]\ndegrees = 200\n', "eggs=0 needs a cool oven: set oven.degrees=50"),
    ],
)
def test_mistake_is_told_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        load("@", write(tmp_path / "wrong.toml", text))
    assert str(caught.value).splitlines() == [
        "cake: 1 setting(s) cannot be used",
        f"  {line}",
        "cake --help describes every setting",
    ]


def test_table_that_is_missing_is_told_by_the_settings_that_it_lacks() -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings(RunConfig, [], program="preceptor train")
    told = [line.strip().removesuffix(": is not set, and has no default") for line in str(caught.value).splitlines()]
    assert told[1:-1] == [
        "student.model",
        "teacher.address",
        "data.train",
        "rollout.prompts_per_step",
        "rollout.max_new_tokens",
        "optimizer.learning_rate",
        "run.directory",
        "run.num_steps",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--oven.degree", "9"], "there is no option --oven.degree; did you mean --oven.degrees?"),
        (["--egs=9"], "there is no option --egs; did you mean --eggs?"),
        (["cake.toml"], "'cake.toml' is no option: settings files stand first, each after an @: @ cake.toml"),
        (["--eggs"], "argument --eggs: expected one argument"),
        (["--oven", "x"], "oven: what the command line says is not JSON, which it must be for a whole table or list"),
    ],
)
def test_command_line_that_cannot_be_read_is_told_without_the_whole_usage(arguments: list[str], line: str) -> None:
    with pytest.raises(InvalidSettingsError) as caught:
        load("--name", "x", *arguments)
    assert str(caught.value).splitlines()[1:-1] == [f"  {line}"]


def test_misspelt_variable_is_told_and_another_programs_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAKE_BAKERY__DEGREES", "150")
    assert load("--name", "x").oven.degrees == 180
    monkeypatch.setenv("CAKE_OVENS__DEGREES", "150")
    with pytest.raises(InvalidSettingsError, match=r"CAKE_OVENS__DEGREES: .*did you mean CAKE_OVEN__DEGREES\?"):
        load("--name", "x")


def test_file_that_is_not_utf8_is_named_and_a_byte_order_mark_is_no_mistake(tmp_path: Path, sponge: str) -> None:
    path = tmp_path / "odd.toml"
    path.write_bytes(b"\xef\xbb\xbfeggs = 7\n")
    assert load("@", sponge, "@", str(path)).eggs == 7
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(InvalidSettingsError, match=r"odd\.toml: is not UTF-8 .*: save it as UTF-8"):
        load("@", sponge, "@", str(path))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match=r"settings file .*nowhere\.toml does not exist"):
        load("@", str(tmp_path / "nowhere.toml"))


def test_folder_is_not_a_settings_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="does not exist"):
        load("@", str(tmp_path))


def test_broken_toml_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "broken.toml", 'name = "x\n')
    with pytest.raises(InvalidSettingsError, match=r"broken\.toml"):
        load("@", path)


def test_at_sign_without_a_path_is_told(sponge: str) -> None:
    with pytest.raises(InvalidSettingsError, match="'@' must be followed by the path"):
        load("@", sponge, "@")


@pytest.mark.parametrize(
    ("settings_type", "program", "sentences"),
    [
        (
            ServerConfig,
            "preceptor-server",
            [
                "Where the model runs; auto takes CUDA when there is one",
                "--engine.max-model-len",
                "Tokens of one forward:",
            ],
        ),
        (
            RunConfig,
            "preceptor train",
            [
                "Ask for scores that do not depend on what else the teacher",
                "--teacher.top-k",
                "host:port of the teacher",
            ],
        ),
    ],
)
def test_help_shows_the_docstrings_and_ends_well(
    settings_type: type[BaseSettings],
    program: str,
    sentences: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        load_settings(settings_type, ["--help"], program=program)
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for sentence in [f"usage: {program}", *sentences]:
        assert sentence in shown


def test_settings_of_the_server_survive_being_written_as_json_and_read_again() -> None:
    config = load_settings(ServerConfig, [*fake_arguments(), "--limits.max-top-k", "7"], program="p")
    again = ServerConfig.model_validate(dump_settings(config))
    assert again == config
    assert again.limits.max_top_k == 7
