from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from preceptor.model_source import InvalidSourceError, Part, check_source, load_error

ALL: tuple[Part, ...] = ("config", "weights", "tokenizer")


def write_model(folder: Path) -> Path:
    """The files of a model, as small as they get: one tensor of four bytes."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return folder


def told(name: str, *, needs: tuple[Part, ...] = ALL, **fields: str) -> str:
    """What is said of it; empty where nothing is wrong."""
    try:
        check_source(name, field="engine.model", needs=needs, **fields)
    except InvalidSourceError as error:
        return str(error)
    return ""


def test_whole_folder_and_an_id_of_the_hub_pass(tmp_path: Path) -> None:
    assert told(str(write_model(tmp_path / "model"))) == ""
    assert told("gpt2") == told("org/model-1.5B") == ""


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere", "runs/a/b", "nowhere/"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name: str) -> None:
    assert told(name) == f"engine.model: no folder {name!r}"


def test_file_in_place_of_a_folder_is_told_and_a_gguf_file_with_its_setting(tmp_path: Path) -> None:
    for name in ("model.gguf", "model.bin"):
        (tmp_path / name).write_bytes(b"GGUF")
    gguf, other = str(tmp_path / "model.gguf"), str(tmp_path / "model.bin")
    advice = "give its folder, and its name as engine.gguf_file"
    assert told(gguf, gguf_field="engine.gguf_file") == f"engine.model: {gguf!r} is a file: {advice}"
    assert told(gguf) == f"engine.model: {gguf!r} is a file, and a model is a folder"
    assert told(other, gguf_field="engine.gguf_file") == f"engine.model: {other!r} is a file, and a model is a folder"


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "holds no config.json, so it is no model"),
        ("model.safetensors", "holds no weights, such as model.safetensors"),
        ("tokenizer.json", "holds no tokenizer, such as tokenizer.json: set engine.tokenizer to where it is"),
    ],
)
def test_part_that_is_missing_is_named_where_it_is_needed(removed: str, message: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / removed).unlink()
    assert told(str(folder), tokenizer_field="engine.tokenizer") == f"engine.model: folder '{folder}' {message}"
    assert told(str(folder), needs=()) == ""
    (folder / "a.gguf").write_bytes(b"GGUF")
    assert told(str(folder), gguf_field="engine.gguf_file").endswith(", but a.gguf: set engine.gguf_file=a.gguf")


@pytest.mark.parametrize(
    ("parts", "file"), [(("weights",), "pytorch_model-00001-of-00002.bin"), (("tokenizer",), "spiece.model")]
)
def test_other_files_of_the_same_part_do(parts: tuple[Part, ...], file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(b"")
    assert told(str(tmp_path), needs=parts) == ""


def test_adapter_names_its_model_itself(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert told(str(tmp_path), needs=("config", "weights")) == ""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS"),
        (lambda whole: whole[:5], "is cut short, or no file of safetensors: it has 5 bytes"),
        (lambda whole: whole[:20], "is cut short, or no file of safetensors: it has 20 bytes"),
        (lambda whole: whole[:-1], r"has (\d+) bytes, and its header speaks of (\d+): copy or download it again"),
        (lambda whole: whole + b"x", r"has (\d+) bytes, and its header speaks of (\d+): copy or download it again"),
        (lambda whole: struct.pack("<Q", 4) + b"oops", "is no file of safetensors: its header is not JSON"),
        (lambda whole: b"", "is cut short, or no file of safetensors: it has 0 bytes"),
    ],
    ids=["Git LFS", "no length", "no header", "a byte less", "a byte more", "no JSON", "empty"],
)
def test_weights_that_did_not_arrive_whole_are_told(spoil: object, message: str, tmp_path: Path) -> None:
    assert callable(spoil)
    folder = write_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(spoil(weights.read_bytes()))
    with pytest.raises(InvalidSourceError, match=message):
        check_source(str(folder), field="engine.model", needs=ALL)


def test_gguf_file_that_is_missing_or_none_is_told_by_its_own_setting(tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"GGUF....")
    (tmp_path / "other.gguf").write_bytes(b"PK")
    assert told(str(tmp_path), gguf_file="there.gguf", gguf_field="engine.gguf_file") == ""
    missing = f"engine.gguf_file: no file x.gguf in '{tmp_path}'; it holds other.gguf, there.gguf"
    assert told(str(tmp_path), gguf_file="x.gguf", gguf_field="engine.gguf_file") == missing
    assert told(str(tmp_path), gguf_file="other.gguf", gguf_field="engine.gguf_file") == (
        f"engine.gguf_file: {tmp_path}/other.gguf is no GGUF file"
    )


def test_librarys_own_words_stand_on_one_line_after_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    error = OSError("not found.\n\n  Try again  later")
    assert (
        str(load_error(str(tmp_path), error, field="f"))
        == f"f: '{tmp_path}' cannot be loaded: not found. Try again later"
    )
    hub = "f: there is no folder 'org/model', and a model of that name cannot be had from the hub"
    assert str(load_error("org/model", error, field="f")) == f"{hub}: not found. Try again later"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert str(load_error("org/model", error, field="f")).startswith(f"{hub} while HF_HUB_OFFLINE is set: ")
    assert str(load_error("org/model", OSError("x" * 1000), field="f")).endswith("x" * 9 + "...")
