from __future__ import annotations

from pathlib import Path

import pytest
from preceptor_server.engines.vllm import revision
from preceptor_server.engines.vllm.adapters import Adapters
from preceptor_server.engines.vllm.checkpoint import end_token_ids, folder_of
from preceptor_server.engines.vllm.revision import revision_of_folder


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("_dot_", ".")).write_bytes(content)
    return path


def test_a_revision_changes_with_every_weight_and_with_how_it_is_used(tmp_path: Path) -> None:
    base = folder(tmp_path / "a", model_dot_safetensors=b"weights", config_dot_json=b"{}")
    same = folder(tmp_path / "b", model_dot_safetensors=b"weights", config_dot_json=b"{}", README_dot_md=b"other")
    other = folder(tmp_path / "c", model_dot_safetensors=b"Weights", config_dot_json=b"{}")
    another = folder(tmp_path / "d", model_dot_safetensors=b"weights", config_dot_json=b"{ }")
    first = revision_of_folder(base, uses="bf16")
    assert len(first) == 16
    assert revision_of_folder(same, uses="bf16") == first
    assert len({first, *(revision_of_folder(one, uses="bf16") for one in (other, another))}) == 3
    assert revision_of_folder(base, uses="fp32") != first


def test_a_large_file_is_sampled_over_its_whole_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "_WHOLE_BYTES", 1 << 20)
    content = bytearray(3 << 20)
    before = revision_of_folder(folder(tmp_path / "a", model_dot_safetensors=bytes(content)), uses="")
    for index, place in enumerate((0, len(content) // 2, len(content) - 1)):
        changed = bytearray(content)
        changed[place] = 1
        assert (
            revision_of_folder(folder(tmp_path / str(index), model_dot_safetensors=bytes(changed)), uses="") != before
        )


def test_versions_of_an_adapter_never_share_a_name_or_a_number(tmp_path: Path) -> None:
    first = folder(tmp_path / "a", adapter_model_dot_safetensors=b"1")
    second = folder(tmp_path / "b", adapter_model_dot_safetensors=b"2")
    adapters = Adapters()
    old = adapters.draft("tutor", first)
    assert "tutor" not in adapters
    assert adapters.publish(old) is None
    new = adapters.draft("tutor", second)
    assert adapters.publish(new) is old
    assert adapters.get("tutor") is new
    assert (old.unique_name, new.unique_name) == ("tutor@1", "tutor@2")
    assert old.number != new.number
    assert old.revision != new.revision
    assert adapters.revisions(base="base") == {"tutor": f"base+{new.revision}"}
    assert adapters.withdraw("tutor") is new
    assert adapters.revisions(base="base") == {}


@pytest.mark.parametrize(
    ("written", "ids"), [('{"eos_token_id": [7, 3]}', (3, 7)), ('{"eos_token_id": 2}', (2,)), ("{}", (9,))]
)
def test_end_tokens_are_the_generation_configs_else_the_models(
    tmp_path: Path, written: str, ids: tuple[int, ...]
) -> None:
    class Config:
        eos_token_id = 9

    (tmp_path / "generation_config.json").write_text(written)
    assert end_token_ids(tmp_path, Config()) == ids


def test_the_folder_of_a_local_model_is_itself(tmp_path: Path) -> None:
    assert folder_of(str(tmp_path)) == tmp_path
