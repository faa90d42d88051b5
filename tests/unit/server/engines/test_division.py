"""Groups that are computed slice by slice, against the plain model and against the same group in one forward."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preceptor_server.engines.base import Division
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.errors import EngineOutOfMemoryError, EngineUnavailableError
from preceptor_server.types import GroupColumns, ScoreGroup

from tests.unit.server.candidate_groups import assert_all_agree_with_support, with_candidates
from tests.unit.server.engines.architectures import ARCHITECTURES, VOCABULARY_SIZE, random_model
from tests.unit.server.engines.test_hf_engine import (
    COLUMNS,
    FLOAT32_NATS,
    assert_bit_equal,
    assert_columns_close,
    assert_matches_oracle,
    folder_of,
    llama,
    loaded,
    mixed_batch,
    plain_logprobs,
)
from tests.unit.server.groups import group_of, random_batch, random_response

__all__ = ["folder_of", "llama"]  # fixtures

FolderOf = Callable[[str], Path]


def config_of(folder: Path, **options: Any) -> HfConfig:  # Any: settings of the engine
    return HfConfig.model_validate({"model": str(folder), **options})


async def finished(division: Division) -> GroupColumns:
    while (columns := await division.advance()) is None:
        assert division.next_tokens > 0
    assert division.next_tokens == 0
    return columns


async def divided(engine: HfEngine, batch: Sequence[ScoreGroup], *, max_cost: int) -> list[GroupColumns]:
    return [await finished(engine.divide(group, max_cost=max_cost)) for group in batch]


def long_group(*, seed: int = 11, num_prompt: int = 70, lengths: Sequence[int] = (5, 60, 1, 30, 9, 47)) -> ScoreGroup:
    """Longer than any threshold of the random models, responses on both sides of it."""
    rng = np.random.default_rng(seed)
    responses = [random_response(rng, length=n, vocabulary_size=VOCABULARY_SIZE) for n in lengths]
    return group_of(rng.integers(0, VOCABULARY_SIZE, num_prompt), *responses, top_k=9)


@pytest.mark.parametrize("max_cost", [7, 64])
@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_divided_groups_equal_the_plain_model(
    architecture: str, packing: str, max_cost: int, folder_of: FolderOf
) -> None:
    rng = np.random.default_rng(2)
    batch = [*mixed_batch(), long_group(), long_group(num_prompt=20, lengths=(10, 90, 12))]
    batch = with_candidates(batch, rng, vocabulary_size=VOCABULARY_SIZE)
    async with loaded(config_of(folder_of(architecture), packing=packing)) as engine:
        answers = await divided(engine, batch, max_cost=max_cost)
        undivided = await engine.score(batch)
    assert_matches_oracle(batch, answers, plain_logprobs(random_model(architecture)))
    assert_all_agree_with_support(batch, answers)
    for group, a, b in zip(batch, answers, undivided, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_columns_close(x, y, atol=FLOAT32_NATS / group.temperature)


async def test_random_groups_divided_anyhow_equal_the_plain_model(llama: Path) -> None:
    logprobs_of = plain_logprobs(random_model("llama"))
    async with loaded(config_of(llama)) as engine:
        for seed in range(8):
            rng = np.random.default_rng(seed)
            batch = random_batch(rng, vocabulary_size=VOCABULARY_SIZE)
            answers = await divided(engine, batch, max_cost=int(rng.choice([1, 2, 5, 13, 40])))
            assert_matches_oracle(batch, answers, logprobs_of)


async def test_divided_by_responses_equals_the_plain_model_too(llama: Path) -> None:
    batch = [*mixed_batch(), long_group()]
    async with loaded(config_of(llama)) as engine:
        assert engine.divide_plainly("a test says so")
        assert not engine.divide_plainly("there is no third way")
        answers = await divided(engine, batch, max_cost=80)
        division = engine.divide(long_group(), max_cost=80)
        nums_tokens = [division.next_tokens]
        while await division.advance() is None:
            nums_tokens.append(division.next_tokens)
    assert_matches_oracle(batch, answers, plain_logprobs(random_model("llama")))
    # The prompt each time, and one response at least; its last token is not computed.
    assert nums_tokens == [70 + 4, 70 + 59, 70 + 0, 70 + 29, 70 + 8, 70 + 46]


@pytest.mark.parametrize("architecture", ["llama", "mistral-sliding", "phi3-longrope", "llama-dynamic"])
@pytest.mark.parametrize("max_cost", [16, 50])
async def test_no_slice_computes_more_than_it_may_and_the_prompt_is_computed_once(
    architecture: str, max_cost: int, folder_of: FolderOf
) -> None:
    group = long_group()
    async with loaded(config_of(folder_of(architecture))) as engine:
        division = engine.divide(group, max_cost=max_cost)
        nums_tokens = [division.next_tokens]
        while await division.advance() is None:
            nums_tokens.append(division.next_tokens)
    assert max(nums_tokens) <= max_cost
    if architecture in ("llama", "mistral-sliding"):
        assert sum(nums_tokens) == group.num_tokens - len(group.responses)


@pytest.mark.parametrize("architecture", ["llama", "gemma3-sliding", "llama-dynamic", "gpt-oss-sinks"])
async def test_numbers_do_not_depend_on_what_runs_between_two_slices(architecture: str, folder_of: FolderOf) -> None:
    group, other = long_group(), long_group(seed=12, num_prompt=33)
    async with loaded(config_of(folder_of(architecture))) as engine:
        alone = await finished(engine.divide(group, max_cost=24))
        one, two = engine.divide(group, max_cost=24), engine.divide(other, max_cost=10)
        while (columns := await one.advance()) is None:
            await engine.score(mixed_batch())
            await two.advance()
        two.close()
    assert_bit_equal(alone, columns)


async def test_numbers_do_not_depend_on_what_had_to_be_computed_again(folder_of: FolderOf) -> None:
    """So many groups are open that none keeps its prompt for longer than its turn."""
    folder, groups = folder_of("qwen3"), [long_group(seed=seed) for seed in range(4)]
    async with loaded(config_of(folder)) as engine:
        alone = await divided(engine, groups, max_cost=24)
        # Keys and values of four layers, of two heads of 16 in fp32: 1 KiB a token, of at most 70 + 48 tokens.
        engine._budget._max_bytes = 200_000  # room for one of the groups
        divisions = [engine.divide(group, max_cost=24) for group in groups]
        answers: list[GroupColumns | None] = [None] * len(groups)
        most_tokens = 0
        while any(one is None for one in answers):
            for index, division in enumerate(divisions):
                if answers[index] is None:
                    most_tokens = max(most_tokens, division.next_tokens)
                    answers[index] = await division.advance()
    assert most_tokens > 24, "nothing had to be computed again: the test would prove nothing"
    for a, b in zip(alone, answers, strict=True):
        assert b is not None
        assert_bit_equal(a, b)


async def test_a_division_is_not_finished_with_other_weights(llama: Path, tmp_path: Path) -> None:
    random_model("llama", seed=1).save_pretrained(tmp_path)
    async with loaded(config_of(llama)) as engine:
        division = engine.divide(long_group(), max_cost=24)
        assert await division.advance() is None
        restore = await engine.load_weights(tmp_path)
        with pytest.raises(EngineUnavailableError, match="the weights changed"):
            await division.advance()
        assert division.next_tokens == 0, "it is closed"
        begun_later = engine.divide(long_group(), max_cost=24)
        await restore()
        first = await finished(begun_later)
        assert_bit_equal(first, await finished(engine.divide(long_group(), max_cost=24)))


async def test_no_slice_comes_between_new_weights_and_their_count(llama: Path, tmp_path: Path) -> None:
    """The event loop is held up while the engine's thread loads and goes on with the division that waited."""
    random_model("llama", seed=1).save_pretrained(tmp_path)
    async with loaded(config_of(llama)) as engine:
        division = engine.divide(long_group(), max_cost=24)
        assert await division.advance() is None
        loading = asyncio.create_task(engine.load_weights(tmp_path))
        advancing = asyncio.create_task(division.advance())
        await asyncio.sleep(0)
        engine._thread.submit(lambda: None).result()
        restore = await loading
        with pytest.raises(EngineUnavailableError, match="the weights changed"):
            await advancing
        division = engine.divide(long_group(), max_cost=24)
        assert await division.advance() is None
        restoring, advancing = asyncio.ensure_future(restore()), asyncio.create_task(division.advance())
        await asyncio.sleep(0)
        engine._thread.submit(lambda: None).result()
        await restoring
        with pytest.raises(EngineUnavailableError, match="the weights changed"):
            await advancing


async def test_weights_that_fail_half_way_are_taken_back_and_end_what_was_open(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model("llama", seed=1).save_pretrained(tmp_path)
    async with loaded(config_of(llama, dtype="bfloat16")) as engine:
        before, revision = await engine.score(mixed_batch()), engine.info().revision
        division = engine.divide(long_group(), max_cost=24)
        assert await division.advance() is None
        take_over = engine._loaded._parted.take_over_weights
        calls: list[str] = []

        def fail_once() -> None:
            calls.append("")
            if len(calls) == 1:
                raise RuntimeError("CUDA error: an illegal memory access")
            take_over()

        monkeypatch.setattr(engine._loaded._parted, "take_over_weights", fail_once)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            await engine.load_weights(tmp_path)
        with pytest.raises(EngineUnavailableError, match="the weights changed"):
            await division.advance()
        assert engine.info().revision == revision
        for a, b in zip(before, await engine.score(mixed_batch()), strict=True):
            assert_bit_equal(a, b)


async def test_a_division_that_is_given_up_frees_what_it_kept(llama: Path) -> None:
    async with loaded(config_of(llama)) as engine:
        division = engine.divide(long_group(), max_cost=24)
        await division.advance()
        assert engine._budget._holders
        division.close()
        division.close()
        await engine.score(mixed_batch()[:1])  # runs after it in the engine's thread
        assert not engine._budget._holders
        assert division.next_tokens == 0


async def test_a_division_may_be_closed_after_its_engine(llama: Path) -> None:
    async with loaded(config_of(llama)) as engine:
        division = engine.divide(long_group(), max_cost=24)
        await division.advance()
    division.close()
    assert division.next_tokens == 0


@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("architecture", ["llama", "mixtral-experts", "phi3-longrope"])
async def test_a_closed_engine_holds_no_weights_and_says_that_it_is_closed(
    architecture: str, packing: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    random_model(architecture, seed=1).save_pretrained(tmp_path)
    async with loaded(config_of(folder_of(architecture), packing=packing, dtype="bfloat16")) as engine:
        restore = await engine.load_weights(tmp_path)
        await engine.score(mixed_batch())
        await engine.reference_logprobs(np.arange(9))
        divisions = [engine.divide(long_group(), max_cost=24) for _ in range(3)]
        await divisions[0].advance()
        await finished(divisions[1])
        model = engine._loaded._model
        head: torch.nn.Module = engine._loaded._parted._fed.original
        held = [weakref.ref(one) for one in (model, *model.parameters(), *head.parameters())]
        del model, head
    gc.collect()
    assert [one() for one in held if one() is not None] == []
    for asked in (
        engine.score(mixed_batch()),
        engine.reference_logprobs(np.arange(9)),
        engine.load_weights(tmp_path),
        restore(),
        divisions[0].advance(),
        divisions[2].advance(),
    ):
        with pytest.raises(EngineUnavailableError, match="the engine is closed"):
            await asked
    for ask in (engine.info, lambda: engine.divide(long_group(), max_cost=24)):
        with pytest.raises(EngineUnavailableError, match="the engine is closed"):
            ask()
    assert all(one.next_tokens == 0 for one in divisions)


async def test_batches_and_groups_that_do_not_fit_are_computed_in_pieces(llama: Path) -> None:
    batch = [*mixed_batch(), long_group()]
    async with loaded(config_of(llama)) as engine:
        whole = await engine.score(batch)
        needed = engine._plan.batch_bytes(batch, engine._ways)
        largest = max(engine._plan.batch_bytes([group], engine._ways) for group in batch)
    async with loaded(config_of(llama, max_batch_bytes=largest * 2 // 3)) as engine:
        assert largest < needed
        pieces = await engine.score(batch)
        again = await engine.score([batch[-1]])
    assert_matches_oracle(batch, pieces, plain_logprobs(random_model("llama")))
    assert_bit_equal(pieces[-1], again[0])
    for a, b in zip(whole, pieces, strict=True):
        for x, y in zip(a, b, strict=True):
            for name in COLUMNS:
                np.testing.assert_allclose(getattr(x, name), getattr(y, name), atol=FLOAT32_NATS)


async def test_what_cannot_be_cut_to_fit_is_refused_before_it_starts(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loaded(config_of(llama, max_batch_bytes=50_000)) as engine:
        monkeypatch.setattr(torch.nn.Module, "__call__", None)
        with pytest.raises(EngineOutOfMemoryError, match=r"engine\.max_batch_bytes=50000: raise it, or send fewer"):
            await engine.score([long_group()])
        with pytest.raises(EngineOutOfMemoryError, match=r"engine\.max_batch_bytes=50000"):
            engine.divide(long_group(), max_cost=24)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError("Unable to allocate 4 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
async def test_a_forward_that_runs_out_of_memory_says_so_and_the_next_one_works(
    error: Exception, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = mixed_batch()[:1]
    async with loaded(config_of(llama)) as engine:
        before = await engine.score(batch)

        def fail(*_: object, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine._loaded, "packed_hidden_states", fail)
            with pytest.raises(EngineOutOfMemoryError, match="ran out of memory"):
                await engine.score(batch)
            division = engine.divide(long_group(), max_cost=24)
            with pytest.raises(EngineOutOfMemoryError, match="ran out of memory"):
                await division.advance()
            assert division.next_tokens == 0
        assert_bit_equal(before[0], (await engine.score(batch))[0])


async def test_an_error_of_another_kind_is_told_as_it_is(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with loaded(config_of(llama)) as engine:

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(engine._loaded, "packed_hidden_states", fail)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            await engine.score(mixed_batch()[:1])
