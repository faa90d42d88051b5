"""A class of the user's own as an engine: what is checked before anything is loaded, and what it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from preceptor_server.engines.building import build_engine, check_engine_class, load_engine
from preceptor_server.engines.config import OwnEngineConfig
from preceptor_server.errors import EngineUnavailableError, StartupError
from preceptor_server.types import EngineInfo

from tests.engines.fake import FakeEngine, fake_config

HERE = __name__


class Plain(FakeEngine):
    """Takes an option, and neither a length nor a vocabulary."""

    def __init__(self, *, layers: int = 2, names: list[str] | None = None) -> None:
        super().__init__()
        self.given = (layers, names)


class Needy(FakeEngine):
    def __init__(self, *, layers: int) -> None:
        super().__init__()


class Refuses(FakeEngine):
    def __init__(self) -> None:
        raise ValueError("not on this machine")


class Breaks(FakeEngine):
    def __init__(self) -> None:
        raise RuntimeError("broken")


class SaysNothing(FakeEngine):
    def info(self) -> EngineInfo:
        return None  # type: ignore[return-value]  # what a test is about


class Imprecise(FakeEngine):
    def info(self) -> EngineInfo:
        return replace(super().info(), dtype="float16")


class LoadsNothing(FakeEngine):
    def load(self) -> None:
        raise KeyError("weights")


class LoadsLater(FakeEngine):
    def load(self) -> None:
        raise EngineUnavailableError("later", retry_after_seconds=1.0)


class NoScore:
    def load(self) -> None: ...
    def info(self) -> None: ...
    def close(self) -> None: ...
    async def reference_logprobs(self, token_ids: object, *, first_row: int = 0) -> None: ...


class NarrowScore(NoScore):
    async def score(self) -> None: ...


class NoWeights(NoScore):
    async def score(self, batch: object) -> None: ...


def config(kind: str, **settings: Any) -> OwnEngineConfig:  # Any: of the engine
    return OwnEngineConfig.model_validate({"kind": kind if ":" in kind else f"{HERE}:{kind}", **settings})


def refusal(settings: OwnEngineConfig) -> str:
    with pytest.raises(StartupError) as caught:
        check_engine_class(settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            config("no_such_module:Engine"),
            "engine.kind='no_such_module:Engine': there is no module 'no_such_module' in ",
        ),
        (config("Missing"), f"engine.kind='{HERE}:Missing': {HERE} has no 'Missing'"),
        (config("refusal"), f"engine.kind='{HERE}:refusal': refusal is not a class but function: name a class"),
        (config(":Engine"), "engine.kind=':Engine': write package.module:Name"),
        (config("NoScore"), f"engine.kind='{HERE}:NoScore' is not an engine: NoScore has no method score(self, batch"),
        (
            config("NarrowScore"),
            f"engine.kind='{HERE}:NarrowScore' is not an engine: NarrowScore.score cannot be called",
        ),
        (
            config("Plain", options={"depth": 1}),
            "engine.options.depth: Plain has no such option; it has: layers, names",
        ),
        (config("Plain", options={"layers": "x"}), "engine.options.layers: Input should be a valid integer"),
        (config("Needy"), "engine.options.layers: Field required"),
        (config("Plain", max_model_len=9), "engine.max_model_len: the constructor of Plain takes none: leave it out"),
        (
            fake_config(tokenizer_size=3),
            "engine.options.tokenizer_size: FakeEngine has no such option; it has: vocabulary_size, seconds_per_token",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_loaded(settings: OwnEngineConfig, told: str) -> None:
    assert refusal(settings).startswith(told)


def test_a_folder_for_weights_needs_an_engine_that_takes_them(tmp_path: Path) -> None:
    check_engine_class(config("Plain", weights_folder=tmp_path))
    told = refusal(config("NoWeights", weights_folder=tmp_path))
    assert told.startswith("engine.weights_folder: NoWeights has no method load_adapter(self, name")
    assert told.endswith(": leave it out")


def test_options_reach_the_constructor_as_its_annotations_say_and_no_two_engines_share_them() -> None:
    settings = config("Plain", options={"layers": "3", "names": ["a"]})
    first, second = build_engine(settings, None), build_engine(settings, None)
    assert isinstance(first, Plain)
    assert isinstance(second, Plain)
    assert first.given == second.given == (3, ["a"])
    assert first.given[1] is not second.given[1]


def test_the_length_that_is_set_reaches_a_constructor_that_names_it() -> None:
    assert build_engine(fake_config(max_model_len=77, vocabulary_size=5), None).info().max_model_len == 77


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("Refuses", f"engine.options: {HERE}:Refuses refuses them: not on this machine"),
        ("Breaks", f"engine.kind='{HERE}:Breaks': its constructor failed: RuntimeError('broken')"),
    ],
)
def test_a_constructor_that_fails_is_told_in_one_line(kind: str, told: str) -> None:
    with pytest.raises(StartupError) as caught:
        build_engine(config(kind), None)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("Imprecise", f"engine.kind='{HERE}:Imprecise': info().dtype='float16' must be float32 or bfloat16"),
        ("LoadsNothing", f"engine.kind='{HERE}:LoadsNothing' cannot be loaded: KeyError: 'weights'"),
        (
            "SaysNothing",
            f"engine.kind='{HERE}:SaysNothing': info() must return preceptor_server.types.EngineInfo, not N",
        ),
    ],
)
def test_an_engine_that_cannot_be_loaded_is_told_in_one_line(kind: str, told: str) -> None:
    settings = config(kind)
    with pytest.raises(StartupError) as caught:
        load_engine(build_engine(settings, None), settings)
    assert str(caught.value).startswith(told)


def test_an_error_of_the_servers_own_goes_through_as_it_is() -> None:
    settings = config("LoadsLater")
    with pytest.raises(EngineUnavailableError, match="later"):
        load_engine(build_engine(settings, None), settings)
