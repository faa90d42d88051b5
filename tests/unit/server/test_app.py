from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer, load_tokenizer
from preceptor_server.config import ListenConfig
from preceptor_server.edges.grpc.server import bind, build_server
from preceptor_server.engines.building import build_engine, load_teacher_tokenizer
from preceptor_server.engines.config import HfConfig, VllmConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.errors import StartupError
from preceptor_server.hosted import with_turn_end
from preceptor_server.hosting import check_vocabularies
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.engines.fake import FakeEngine, fake_config
from tests.tiny import tiny_tokenizer
from tests.unit.server.hosting import DescribedEngine


def config_for(host: str, port: int = 0) -> ListenConfig:
    return ListenConfig(host=host, port=port)


def can_bind(host: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


async def bound_address(config: ListenConfig) -> str:
    server = build_server(config, max_message_bytes=1 << 20)
    try:
        return bind(server, config)
    finally:
        await server.stop(None)


@pytest.mark.parametrize(("host", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
async def test_address_is_one_that_a_client_can_use(host: str, written: str) -> None:
    if not can_bind(host):
        pytest.skip(f"this machine has no {host}")
    name, _, port = (await bound_address(config_for(host))).rpartition(":")
    assert name == written
    assert int(port) > 0


async def test_port_in_use_is_told_with_a_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"cannot bind to 127\.0\.0\.1:{port} .*Set listen\.port"):
            await bound_address(config_for("127.0.0.1", port))


def test_fake_engine_takes_its_tokenizers_vocabulary() -> None:
    engine = build_engine(fake_config(vocabulary_size=2), TeacherTokenizer(tiny_tokenizer()))
    assert isinstance(engine, FakeEngine)
    assert engine.info().vocabulary_size == 259


def test_hf_engine_is_built_without_being_loaded() -> None:
    engine = build_engine(HfConfig(model="/nowhere"), None)
    assert isinstance(engine, HfEngine)
    engine.close()


def test_model_without_a_tokenizer_of_its_own_takes_another_and_that_one_is_named(
    tiny_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((tiny_folder / name).read_bytes())
    tokenizer = load_teacher_tokenizer(HfConfig(model=str(model), tokenizer=str(tiny_folder)))
    assert tokenizer is not None
    assert tokenizer.vocabulary_size == 259
    with pytest.raises(StartupError, match=r"^engine\.model: .*holds no tokenizer, .*: set engine\.tokenizer to where"):
        load_teacher_tokenizer(HfConfig(model=str(model)))
    with pytest.raises(StartupError, match=r"^engine\.tokenizer: no folder '/nowhere/else'$"):
        load_teacher_tokenizer(HfConfig(model=str(model), tokenizer="/nowhere/else"))


@pytest.mark.parametrize("config_type", [HfConfig, VllmConfig])
def test_models_folder_that_is_missing_is_told_as_the_models(config_type: type[HfConfig | VllmConfig]) -> None:
    with pytest.raises(StartupError, match=r"^engine\.model: no folder '/nowhere/model'$"):
        load_teacher_tokenizer(config_type(model="/nowhere/model"))


def test_home_is_found_in_names_too(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert load_teacher_tokenizer(HfConfig(model=f"~/{tiny_folder.name}")) is not None


def test_tokenizer_with_more_tokens_than_the_model_has_logits_is_refused() -> None:
    engine = FakeEngine(vocabulary_size=258)
    with pytest.raises(StartupError, match="has 259 tokens and the model only 258 logits"):
        check_vocabularies(engine, TeacherTokenizer(tiny_tokenizer()))


def test_special_token_beyond_the_models_logits_is_told_and_serves(caplog: pytest.LogCaptureFixture) -> None:
    """An image's, in a text-only copy of a model, such as Gemma 3's."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    engine = FakeEngine(vocabulary_size=259)
    check_vocabularies(engine, TeacherTokenizer(tokenizer))
    assert "beyond the model's 259 logits, refused in prompts: <image>" in caplog.text


def test_tokenizer_with_holes_is_as_large_as_its_largest_id() -> None:
    """A token that was added without resizing the model, behind a hole."""
    tokenizer = tiny_tokenizer()
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["model"]["vocab"]["zz"] = 400
    wide = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)))
    engine = FakeEngine(vocabulary_size=300)
    assert len(wide) < 300
    with pytest.raises(StartupError, match="has 401 tokens and the model only 300 logits"):
        check_vocabularies(engine, TeacherTokenizer(wide))


@pytest.mark.parametrize("token_id", [300, 1000])
def test_end_token_beyond_the_models_logits_is_refused(token_id: int) -> None:
    engine = DescribedEngine(vocabulary_size=300, end_token_ids=(0, token_id))
    with pytest.raises(StartupError, match=f"end token {token_id} lies beyond the model's 300 logits: mend eos_token"):
        check_vocabularies(engine, None)


@pytest.mark.parametrize("num_logits", [259, 320])
def test_tokenizer_may_know_fewer_tokens_than_the_model_has_logits(num_logits: int, tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder), gguf_file=None, trust_remote_code=False)
    check_vocabularies(FakeEngine(vocabulary_size=num_logits), tokenizer)


def test_what_the_chat_template_ends_a_turn_with_is_an_end_too() -> None:
    info = FakeEngine(vocabulary_size=300).info()
    tokenizer = TeacherTokenizer(tiny_tokenizer())
    assert with_turn_end(info, tokenizer).end_token_ids == (0, 2)
    assert with_turn_end(with_turn_end(info, tokenizer), tokenizer).end_token_ids == (0, 2)
    assert with_turn_end(info, None) is info
