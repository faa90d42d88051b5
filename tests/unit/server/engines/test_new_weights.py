"""Weights that take the place of a loaded model's own: what is served then is what a fresh start would serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor_server.engines.base import UpdatesWeights
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.errors import WeightUpdateError
from preceptor_server.types import GroupColumns
from safetensors.torch import load_file, save_file

from tests.engines.fake import FakeEngine
from tests.tiny import tiny_llama
from tests.unit.server.engines.architectures import ARCHITECTURES, random_model
from tests.unit.server.groups import group_of

GROUP = group_of([7, 8, 9], [10, 11, 12, 13], [14], top_k=5)


@asynccontextmanager
async def loaded(folder: Path, **settings: object) -> AsyncIterator[HfEngine]:
    engine = HfEngine(HfConfig.model_validate({"model": str(folder), **settings}))
    try:
        engine.load()
        yield engine
    finally:
        engine.close()


def assert_equal(a: list[GroupColumns], b: list[GroupColumns]) -> None:
    """To the bit."""
    for x, y in zip(a[0], b[0], strict=True):
        for name in ("support_ids_NK", "support_logprobs_NK", "sampled_logprobs_N", "log_tail_mass_N", "entropies_N"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    tiny_llama(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture
def new(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    tiny_llama(seed=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [{}, {"packing": "sequential"}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "head_dtype": "model"}],
    ids=["float32", "sequential", "bfloat16 with a head in float32", "bfloat16"],
)
async def test_answers_and_revision_are_those_of_a_fresh_start(old: Path, new: Path, settings: dict[str, str]) -> None:
    async with loaded(old, **settings) as engine, loaded(new, **settings) as fresh:
        before, revision = await engine.score([GROUP]), engine.info().revision
        await engine.load_weights(new)
        assert engine.info().revision == fresh.info().revision != revision
        after = await engine.score([GROUP])
        assert_equal(after, await fresh.score([GROUP]))
        assert np.abs(after[0][0].sampled_logprobs_N - before[0][0].sampled_logprobs_N).max() > 0.1
        ids = np.array([7, 8, 9])
        np.testing.assert_array_equal(await engine.reference_logprobs(ids), await fresh.reference_logprobs(ids))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "llama"])
async def test_every_architecture_takes_weights_as_a_fresh_start_would(tmp_path: Path, name: str) -> None:
    for seed in (1, 2):
        random_model(name, seed=seed).save_pretrained(tmp_path / str(seed))
    async with loaded(tmp_path / "1") as engine, loaded(tmp_path / "2") as fresh:
        before = engine.info().revision
        restore = await engine.load_weights(tmp_path / "2")
        assert engine.info().revision == fresh.info().revision
        assert_equal(await engine.score([GROUP]), await fresh.score([GROUP]))
        await restore()
        assert engine.info().revision == before


async def test_an_untied_head_is_taken_over_too(tmp_path: Path) -> None:
    for seed in (1, 2):
        tiny_llama(seed=seed, tied=False).save_pretrained(tmp_path / str(seed))
    settings = {"dtype": "bfloat16"}
    async with loaded(tmp_path / "1", **settings) as engine, loaded(tmp_path / "2", **settings) as fresh:
        await engine.load_weights(tmp_path / "2")
        assert_equal(await engine.score([GROUP]), await fresh.score([GROUP]))


async def test_saved_buffers_are_weights_too(tmp_path: Path) -> None:
    """Of two checkpoints that differ in nothing else."""
    model = random_model("deepseek-v3-saved-buffers")
    model.save_pretrained(tmp_path / "old")
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.neg_()
    model.save_pretrained(tmp_path / "new")
    async with loaded(tmp_path / "old") as engine, loaded(tmp_path / "new") as fresh:
        before, revision = await engine.score([GROUP]), engine.info().revision
        assert fresh.info().revision != revision
        restore = await engine.load_weights(tmp_path / "new")
        assert engine.info().revision == fresh.info().revision
        after = await engine.score([GROUP])
        assert_equal(after, await fresh.score([GROUP]))
        assert np.abs(after[0][0].sampled_logprobs_N - before[0][0].sampled_logprobs_N).max() > 0.1
        await restore()
        assert engine.info().revision == revision
        assert_equal(await engine.score([GROUP]), before)


async def test_a_checkpoint_that_lacks_a_saved_buffer_is_refused(tmp_path: Path) -> None:
    random_model("deepseek-v3-saved-buffers").save_pretrained(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    path = tmp_path / "new" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.endswith("e_score_correction_bias")}
    save_file(kept, path, metadata={"format": "pt"})
    async with loaded(tmp_path / "old") as engine:
        with pytest.raises(WeightUpdateError, match=r"lacks weights: .*e_score_correction_bias"):
            await engine.load_weights(tmp_path / "new")


@pytest.mark.parametrize(("served", "saved"), [("float32", "bfloat16"), ("bfloat16", "float32")])
async def test_weights_saved_in_another_dtype_are_taken_as_a_fresh_start_would(
    old: Path, tmp_path: Path, served: str, saved: str
) -> None:
    tiny_llama(seed=2).to(getattr(torch, saved)).save_pretrained(tmp_path)
    async with loaded(old, dtype=served) as engine, loaded(tmp_path, dtype=served) as fresh:
        await engine.load_weights(tmp_path)
        assert engine.info().revision == fresh.info().revision
        assert_equal(await engine.score([GROUP]), await fresh.score([GROUP]))


async def test_tensors_that_the_model_has_no_place_for_are_passed_over_as_at_a_fresh_start(
    old: Path, new: Path
) -> None:
    """A trainer's value head, and a second copy of tied weights."""
    path = new / "model.safetensors"
    tensors = load_file(path)
    copied = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone(), "v_head.weight": torch.ones(1, 32)}
    save_file(tensors | copied, path, metadata={"format": "pt"})
    async with loaded(old) as engine, loaded(new) as fresh:
        await engine.load_weights(new)
        assert engine.info().revision == fresh.info().revision
        assert_equal(await engine.score([GROUP]), await fresh.score([GROUP]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_way_back_restores_every_bit(old: Path, new: Path, dtype: str) -> None:
    async with loaded(old, dtype=dtype) as engine:
        before, revision = await engine.score([GROUP]), engine.info().revision
        restore = await engine.load_weights(new)
        await restore()
        assert engine.info().revision == revision
        assert_equal(await engine.score([GROUP]), before)


async def test_files_that_change_afterwards_change_nothing(old: Path, new: Path) -> None:
    async with loaded(old) as engine:
        await engine.load_weights(new)
        before = await engine.score([GROUP])
        weights = new / "model.safetensors"
        with weights.open("r+b") as file:  # in place, where a mapped file would show it
            file.write(bytes(weights.stat().st_size))
        assert_equal(await engine.score([GROUP]), before)


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def drop_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def untie(folder: Path) -> None:
    """Against its config, which transformers then disregards."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = -tensors["model.embed_tokens.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path) | {"model.norm.weight": torch.ones(31)}
    save_file(tensors, path, metadata={"format": "pt"})


def pickle(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_architecture(folder: Path) -> None:
    shutil.rmtree(folder)
    random_model("qwen3").save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (edit_config(rms_norm_eps=0.1), "another config than the teacher.*rms_norm_eps"),
        (edit_config(num_hidden_layers=1), "another config than the teacher.*num_hidden_layers"),
        (edit_config(num_hidden_layers=3), r"lacks weights: model\.layers\.2.*, and 1 more"),
        (edit_config(tie_word_embeddings=False), "lacks weights: lm_head.weight|tie_word_embeddings"),
        (edit_config(model_type="qwen3"), "its model_type is 'qwen3', the teacher's is 'llama'"),
        (other_architecture, "model_type"),
        (untie, r"ties other weights than the teacher.*lm_head\.weight"),
        (drop_a_weight, r"lacks weights: model\.norm\.weight"),
        (other_shape, "cannot be loaded"),
        (pickle, "cannot be loaded"),
        (truncate, "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("[]"), "its model_type is None"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
    ],
    ids=[
        *("another eps", "fewer layers", "more layers", "untied", "another type", "another architecture"),
        *(
            "a head beside tied weights",
            "a weight missing",
            "another shape",
            "a pickle",
            "truncated",
            "config torn",
            "config of a list",
        ),
        *("no config", "no weights"),
    ],
)
async def test_what_does_not_fit_is_refused_and_changes_nothing(
    old: Path, new: Path, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(new)
    async with loaded(old) as engine:
        before, revision = await engine.score([GROUP]), engine.info().revision
        with pytest.raises(WeightUpdateError, match=says) as caught:
            await engine.load_weights(new)
        assert caught.value.field == "path"
        assert str(new.parent) not in str(caught.value)
        assert engine.info().revision == revision
        assert_equal(await engine.score([GROUP]), before)


async def test_what_a_trainer_may_have_changed_in_a_config_is_no_hindrance(old: Path, new: Path) -> None:
    edit_config(use_cache=False, eos_token_id=[2, 1])(new)
    async with loaded(old) as engine:
        await engine.load_weights(new)
        assert engine.info().end_token_ids == (2,)


async def test_no_code_of_the_folder_is_run(old: Path, new: Path) -> None:
    (new / "evil.py").write_text(f"open({str(new / 'ran')!r}, 'w')\nclass Evil: ...\n")
    edit_config(auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})(new)
    async with loaded(old, trust_remote_code=True) as engine:
        with pytest.raises(WeightUpdateError, match="auto_map"):
            await engine.load_weights(new)
    assert not (new / "ran").exists()


async def test_hf_sends_adapters_to_the_engine_that_has_them(old: Path, new: Path) -> None:
    async with loaded(old) as engine:
        with pytest.raises(WeightUpdateError, match="only 'vllm' does"):
            await engine.load_adapter("law", new)


def seed_folder(folder: Path, seed: object) -> Path:
    folder.mkdir()
    (folder / "seed").write_text(f"{seed}\n")
    return folder


async def test_fake_weights_and_adapters_shift_what_is_answered(tmp_path: Path) -> None:
    engine = FakeEngine(vocabulary_size=50)
    assert isinstance(engine, UpdatesWeights)
    three, five = seed_folder(tmp_path / "three", 3), seed_folder(tmp_path / "five", 5)
    own = await engine.score([GROUP])
    restore = await engine.load_weights(three)
    moved = await engine.score([GROUP])
    assert engine.info().revision == "fake-50-3"
    assert np.abs(moved[0][0].sampled_logprobs_N - own[0][0].sampled_logprobs_N).max() > 0.1
    await restore()
    assert engine.info().revision == "fake-50"
    assert_equal(await engine.score([GROUP]), own)
    await engine.load_adapter("law", five)
    assert engine.info().adapters == {"law": "fake-50+5"}
    with_law = group_of([7, 8, 9], [10, 11, 12, 13], [14], top_k=5, adapter="law")
    adapted = await engine.score([with_law])
    assert np.abs(adapted[0][0].sampled_logprobs_N - own[0][0].sampled_logprobs_N).max() > 0.1
    assert_equal(await engine.score([GROUP]), own)
    # Of the teacher that it is laid on.
    await engine.load_weights(three)
    assert engine.info().adapters == {"law": "fake-50-3+5"}
    await engine.unload_adapter("law")
    assert engine.info().adapters == {}


@pytest.mark.parametrize("seed", ["", "x", "1.5"])
async def test_fake_weights_that_are_none_are_refused(tmp_path: Path, seed: str) -> None:
    engine = FakeEngine()
    with pytest.raises(WeightUpdateError, match="bad holds no file 'seed'"):
        await engine.load_weights(seed_folder(tmp_path / "bad", seed))
    assert engine.info().revision == "fake-256"
