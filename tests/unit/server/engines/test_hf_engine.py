from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from preceptor.wire import PositionStatus, TokenArray
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.errors import StartupError
from preceptor_server.types import GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup
from transformers import PreTrainedModel

from tests.engines.fake import dense_columns
from tests.tiny import save_tiny, tiny_llama
from tests.unit.server.candidate_groups import assert_all_agree_with_support, with_candidates
from tests.unit.server.engines.architectures import (
    ARCHITECTURES,
    MAX_MODEL_LEN,
    SLIDING_WINDOW,
    VOCABULARY_SIZE,
    random_model,
)
from tests.unit.server.groups import group_of, random_batch, random_response, response_of

# T = tokens of a response, N = its scored positions, K = support size, V = vocabulary size

FLOAT32_NATS = 2e-4
"""Other orders of summation in 4 layers of fp32; a token too many or too few moves logprobs by tenths."""
NEAR_TIE_NATS = 1e-4
"""Neighbours this close may swap between two orders of summation."""

COLUMNS = ("support_logprobs_NK", "sampled_logprobs_N", "log_tail_mass_N", "entropies_N")
"""Those that every answer has."""

Floats = npt.NDArray[np.float64]
FolderOf = Callable[[str], Path]
LogprobsOf = Callable[[TokenArray], Floats]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """The folder of a model of that architecture, made when first asked for."""
    root = tmp_path_factory.mktemp("architectures")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            random_model(name).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture(scope="module")
def llama(folder_of: FolderOf) -> Path:
    return folder_of("llama")


@asynccontextmanager
async def loaded(config: HfConfig) -> AsyncIterator[HfEngine]:
    engine = HfEngine(config)
    try:
        engine.load()
        yield engine
    finally:
        engine.close()


def plain_logprobs(model: PreTrainedModel) -> LogprobsOf:
    """The oracle: the model itself, as transformers runs it, one sequence at a time, in float64 after its logits. Each
    sequence meets a fresh copy, since a dynamic rope remembers the longest that it has seen."""

    @torch.inference_mode()
    def logprobs(ids: TokenArray) -> Floats:
        logits_TV = copy.deepcopy(model)(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0]
        result: Floats = logits_TV.double().log_softmax(dim=-1).numpy()
        return result

    return logprobs


def mixed_batch() -> list[ScoreGroup]:
    """Shared prefixes longer than a sliding window, one-token prompts and responses, unlike K and temperatures."""
    rng = np.random.default_rng(5)

    def ids(length: int) -> TokenArray:
        return rng.integers(0, VOCABULARY_SIZE, length)

    def responses(*lengths: int) -> list[ResponseToScore]:
        return [random_response(rng, length=n, vocabulary_size=VOCABULARY_SIZE) for n in lengths]

    stem = ids(5 * SLIDING_WINDOW)
    return [
        group_of([*stem, *ids(5)], *responses(3, 1, 17), top_k=2),
        group_of([*stem, *ids(9)], *responses(1), top_k=32, temperature=0.5),
        group_of(stem, *responses(4, 4), top_k=64, temperature=2.0),
        group_of([*stem, *ids(3 * SLIDING_WINDOW)], *responses(30, 5), top_k=5),
        group_of(ids(1), *responses(1, 2, 12), top_k=VOCABULARY_SIZE),
    ]


def expected_columns(
    logprobs_of: LogprobsOf, group: ScoreGroup, response: ResponseToScore
) -> tuple[Floats, ResponseColumns]:
    """The scaled logprobs of every token of the response, and the columns that follow from them."""
    ids = np.concatenate([group.prompt_ids_P, response.ids_T])
    scaled_TV = logprobs_of(ids)[len(group.prompt_ids_P) - 1 : -1] / group.temperature
    return scaled_TV, dense_columns(scaled_TV, response, top_k=group.top_k)


def assert_ids_equal_but_for_near_ties(scaled_NV: Floats, actual: ResponseColumns, expected: ResponseColumns) -> None:
    top_k = expected.support_ids_NK.shape[1]
    sorted_NV = -np.sort(-scaled_NV, axis=1)
    gaps = np.abs(np.diff(sorted_NV, axis=1))
    far = np.full((len(scaled_NV), 1), np.inf)
    is_clear_NK = (np.minimum(np.hstack([far, gaps]), np.hstack([gaps, far])) > NEAR_TIE_NATS)[:, :top_k]
    np.testing.assert_array_equal(actual.support_ids_NK[is_clear_NK], expected.support_ids_NK[is_clear_NK])
    assert is_clear_NK.mean() > 0.5, "nearly all ties: the comparison would prove nothing"


def assert_columns_close(actual: ResponseColumns, expected: ResponseColumns, *, atol: float) -> None:
    np.testing.assert_array_equal(actual.status_T, expected.status_T)
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), atol=atol, err_msg=name)
    assert (actual.candidate_logprobs_NC is None) == (expected.candidate_logprobs_NC is None)
    if actual.candidate_logprobs_NC is not None and expected.candidate_logprobs_NC is not None:
        np.testing.assert_allclose(actual.candidate_logprobs_NC, expected.candidate_logprobs_NC, atol=atol)


def assert_matches_oracle(
    batch: Sequence[ScoreGroup], answers: Sequence[GroupColumns], logprobs_of: LogprobsOf
) -> None:
    for group, answer in zip(batch, answers, strict=True):
        for response, actual in zip(group.responses, answer, strict=True):
            scaled_TV, expected = expected_columns(logprobs_of, group, response)
            assert_columns_close(actual, expected, atol=FLOAT32_NATS / group.temperature)
            assert_ids_equal_but_for_near_ties(scaled_TV[response.score_mask_T], actual, expected)


def assert_bit_equal(a: GroupColumns, b: GroupColumns) -> None:
    for x, y in zip(a, b, strict=True):
        for name in ("status_T", "support_ids_NK", *COLUMNS):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)


@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_batch_equals_the_plain_model(architecture: str, packing: str, folder_of: FolderOf) -> None:
    config = HfConfig.model_validate({"model": str(folder_of(architecture)), "packing": packing})
    batch = mixed_batch()
    async with loaded(config) as engine:
        answers = await engine.score(batch)
    assert_matches_oracle(batch, answers, plain_logprobs(random_model(architecture)))


@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2-softcapped"])
async def test_reference_is_the_plain_model_and_leaves_the_engine_as_it_was(
    architecture: str, packing: str, folder_of: FolderOf
) -> None:
    ids = np.random.default_rng(1).integers(0, VOCABULARY_SIZE, 40)
    batch = mixed_batch()[:1]
    async with loaded(HfConfig.model_validate({"model": str(folder_of(architecture)), "packing": packing})) as engine:
        before = await engine.score(batch)
        reference_TV = await engine.reference_logprobs(ids)
        after = await engine.score(batch)
    np.testing.assert_allclose(reference_TV, plain_logprobs(random_model(architecture))(ids), atol=FLOAT32_NATS)
    assert_bit_equal(before[0], after[0])


async def test_random_batches_equal_the_plain_model(llama: Path) -> None:
    logprobs_of = plain_logprobs(random_model("llama"))
    async with loaded(HfConfig(model=str(llama))) as engine:
        for seed in range(12):
            batch = random_batch(np.random.default_rng(seed), vocabulary_size=VOCABULARY_SIZE)
            assert_matches_oracle(batch, await engine.score(batch), logprobs_of)


@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("rows_per_head_chunk", [1, 7, 1000])
async def test_candidates_equal_the_plain_model_however_the_rows_are_cut(
    packing: str, rows_per_head_chunk: int, llama: Path
) -> None:
    options = {"model": str(llama), "packing": packing, "rows_per_head_chunk": rows_per_head_chunk}
    batch = with_candidates(mixed_batch(), np.random.default_rng(8), vocabulary_size=VOCABULARY_SIZE)
    async with loaded(HfConfig.model_validate(options)) as engine:
        answers = await engine.score(batch)
    assert_matches_oracle(batch, answers, plain_logprobs(random_model("llama")))
    assert_all_agree_with_support(batch, answers)


async def test_only_the_group_that_names_candidates_gets_them_and_no_other_number_changes(llama: Path) -> None:
    plain = mixed_batch()
    batch = [*plain[:-1], *with_candidates(plain[-1:], np.random.default_rng(3), vocabulary_size=VOCABULARY_SIZE)]
    async with loaded(HfConfig(model=str(llama))) as engine:
        without, answers = await engine.score(plain), await engine.score(batch)
    assert_all_agree_with_support(batch, answers)
    for a, b in zip(without, answers, strict=True):
        assert_bit_equal(a, b)


@pytest.mark.parametrize("packing", ["packed", "sequential"])
async def test_group_in_company_equals_the_group_alone(packing: str, llama: Path) -> None:
    batch = mixed_batch()
    async with loaded(HfConfig.model_validate({"model": str(llama), "packing": packing})) as engine:
        together = await engine.score(batch)
        alone = [(await engine.score([group]))[0] for group in batch]
    for a, b in zip(together, alone, strict=True):
        for x, y in zip(a, b, strict=True):
            assert_columns_close(x, y, atol=1e-4)


async def test_same_group_alone_twice_is_bit_equal_whatever_came_between(llama: Path) -> None:
    batch = mixed_batch()
    async with loaded(HfConfig(model=str(llama))) as engine:
        first = (await engine.score([batch[3]]))[0]
        await engine.score(batch)
        second = (await engine.score([batch[3]]))[0]
    assert_bit_equal(first, second)


@pytest.mark.parametrize("rows_per_head_chunk", [1, 7, 1000])
async def test_size_of_the_head_chunk_changes_nothing(rows_per_head_chunk: int, llama: Path) -> None:
    batch = mixed_batch()
    async with loaded(HfConfig(model=str(llama), rows_per_head_chunk=rows_per_head_chunk)) as engine:
        answers = await engine.score(batch)
    assert_matches_oracle(batch, answers, plain_logprobs(random_model("llama")))


async def test_info_says_what_was_loaded(llama: Path) -> None:
    async with loaded(HfConfig(model=str(llama), device="cpu")) as engine:
        info = engine.info()
    assert (info.engine, info.model, info.dtype, info.device) == ("hf", "llama", "float32", "cpu")
    assert (info.vocabulary_size, info.max_model_len, info.end_token_ids) == (VOCABULARY_SIZE, MAX_MODEL_LEN, (2,))


async def test_context_may_be_set_shorter(llama: Path) -> None:
    async with loaded(HfConfig(model=str(llama), max_model_len=100)) as engine:
        assert engine.info().max_model_len == 100


async def test_bfloat16_stays_within_half_a_nat_of_float32_with_the_same_rounded_weights(llama: Path) -> None:
    model = random_model("llama")
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    logprobs_of = plain_logprobs(model)
    config = HfConfig(model=str(llama), dtype="bfloat16")
    batch = [group for group in mixed_batch() if group.temperature == 1]
    async with loaded(config) as engine:
        answers = await engine.score(batch)
    for group, answer in zip(batch, answers, strict=True):
        for response, actual in zip(group.responses, answer, strict=True):
            _, expected = expected_columns(logprobs_of, group, response)
            np.testing.assert_allclose(actual.sampled_logprobs_N, expected.sampled_logprobs_N, atol=0.5)
            assert actual.entropies_N is not None
            assert expected.entropies_N is not None
            np.testing.assert_allclose(actual.entropies_N, expected.entropies_N, atol=0.5)


async def revision_of(config: HfConfig) -> str:
    async with loaded(config) as engine:
        return engine.info().revision


async def test_revision_is_the_same_when_loaded_again_and_however_packed(llama: Path) -> None:
    revisions = {
        await revision_of(HfConfig(model=str(llama))),
        await revision_of(HfConfig(model=str(llama))),
        await revision_of(HfConfig(model=str(llama), packing="sequential")),
    }
    assert len(revisions) == 1


async def test_revision_changes_with_one_number_of_any_weight(llama: Path, tmp_path: Path) -> None:
    revisions = {await revision_of(HfConfig(model=str(llama)))}
    model = random_model("llama")
    names = [name for name, _ in model.named_parameters()]
    for name in (names[0], names[len(names) // 2], names[-1]):
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.view(-1)[-1] += 1e-3
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            weight.view(-1)[-1] -= 1e-3
        revisions.add(await revision_of(HfConfig(model=str(tmp_path / name))))
    assert len(revisions) == 4


async def test_revision_changes_with_the_precision_of_weights_and_head(llama: Path) -> None:
    revisions = {
        await revision_of(HfConfig(model=str(llama))),
        await revision_of(HfConfig(model=str(llama), dtype="bfloat16")),
        await revision_of(HfConfig(model=str(llama), dtype="bfloat16", head_dtype="model")),
    }
    assert len(revisions) == 3


def load(config: HfConfig) -> None:
    engine = HfEngine(config)
    try:
        engine.load()
    finally:
        engine.close()


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^engine\.model: there is no folder '.*nowhere'"):
        load(HfConfig(model=str(tmp_path / "nowhere")))


def test_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"engine\.model: .* cannot be loaded"):
        load(HfConfig(model=str(tmp_path)))


def test_cuda_without_cuda_is_told(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StartupError, match=r"engine\.device=cuda, .*set engine\.device=cpu"):
        load(HfConfig(model=str(llama), device="cuda"))


def test_context_beyond_the_models_own_is_told(llama: Path) -> None:
    with pytest.raises(StartupError, match=r"engine\.max_model_len=257 is beyond the model's own 256"):
        load(HfConfig(model=str(llama), max_model_len=257))


POISON = 77
"""A token whose row of the embedding is NaN: whatever reads it is lost, and the rest must not notice."""


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    model = random_model("llama")
    weight = model.get_input_embeddings().get_parameter("weight")
    assert weight is not model.get_output_embeddings().weight, "a tied head would lose every position"
    with torch.no_grad():
        weight[POISON] = torch.nan
    model.save_pretrained(tmp_path)
    return tmp_path


async def score(folder: Path, *batch: ScoreGroup) -> list[GroupColumns]:
    async with loaded(HfConfig(model=str(folder))) as engine:
        return await engine.score(batch)


async def test_positions_that_read_a_nan_are_flagged_and_all_others_are_bit_equal(llama: Path, poisoned: Path) -> None:
    # The token is read by nobody where it is the last, and by all that comes after it elsewhere.
    batch = [
        group_of([5, 6, 7], [8, 9, POISON], [POISON, 8, 9, 10], [11, 12]),
        group_of([5, 6], [8, 9, 10]),
    ]
    healthy, hurt = await score(llama, *batch), await score(poisoned, *batch)
    lost = hurt[0][1]
    assert lost.status_T.tolist() == [PositionStatus.OK, *[PositionStatus.NON_FINITE] * 3]
    for name in ("support_ids_NK", *COLUMNS):
        np.testing.assert_array_equal(getattr(lost, name), getattr(healthy[0][1], name)[:1])
    assert_bit_equal((hurt[0][0], hurt[0][2]), (healthy[0][0], healthy[0][2]))
    assert_bit_equal(hurt[1], healthy[1])


async def test_candidates_of_positions_without_a_row_are_left_out(llama: Path, poisoned: Path) -> None:
    named = [[8, POISON, 9, 9], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    response = response_of([POISON, 8, 9, 10], [1, 0, 1, 1], candidates=named)
    healthy = (await score(llama, group_of([5, 6], response)))[0][0].candidate_logprobs_NC
    hurt = (await score(poisoned, group_of([5, 6], response)))[0][0]
    assert hurt.status_T.tolist() == [1, 2, 3, 3]
    assert healthy is not None
    assert hurt.candidate_logprobs_NC is not None
    assert healthy.shape == (3, 4)
    np.testing.assert_array_equal(hurt.candidate_logprobs_NC, healthy[:1])


async def test_masked_position_stays_excluded_even_where_it_is_not_finite(poisoned: Path) -> None:
    columns = (await score(poisoned, group_of([5, 6], response_of([POISON, 8, 9, 10], [1, 0, 1, 0]))))[0][0]
    assert columns.status_T.tolist() == [
        PositionStatus.OK,
        PositionStatus.EXCLUDED,
        PositionStatus.NON_FINITE,
        PositionStatus.EXCLUDED,
    ]
    assert len(columns.sampled_logprobs_N) == 1


async def test_prompt_that_is_not_finite_loses_its_group_alone(poisoned: Path) -> None:
    lost, fine = await score(poisoned, group_of([5, POISON], [8, 9], [10]), group_of([5, 6], [8, 9]))
    assert [columns.status_T.tolist() for columns in lost] == [[3, 3], [3]]
    assert [columns.support_ids_NK.shape for columns in lost] == [(0, 4), (0, 4)]
    assert [columns.status_T.tolist() for columns in fine] == [[1, 1]]


def test_the_revision_changes_with_what_the_config_makes_of_the_same_weights(tmp_path: Path) -> None:
    model = tiny_llama()
    plain = save_tiny(tmp_path / "plain", model)
    assert model.config.rope_parameters is not None
    model.config.rope_parameters["rope_theta"] = 500.0
    other = save_tiny(tmp_path / "other", model)
    revisions = []
    for folder in (plain, other, plain):
        engine = HfEngine(HfConfig(model=str(folder)))
        engine.load()
        revisions.append(engine.info().revision)
        engine.close()
    assert revisions[0] == revisions[2]
    assert revisions[0] != revisions[1]


@pytest.mark.parametrize(
    ("packing", "remedy"), [("packed", "set engine.packing to auto or sequential"), ("auto", ""), ("sequential", "")]
)
def test_a_wrong_forward_is_told_with_what_to_change(packing: str, remedy: str, folder_of: FolderOf) -> None:
    engine = HfEngine(HfConfig.model_validate({"model": str(folder_of("llama")), "packing": packing}))
    engine.load()
    assert engine.info().remedy.endswith(remedy)
    engine.close()


@pytest.mark.parametrize(("width", "ids"), [("<u2", [0, 1, 65_535]), ("<u4", [0, 65_535, 65_536, 69_999])])
async def test_packed_candidates_are_answered_to_the_bit_as_those_in_64_bits(
    width: str, ids: list[int], tmp_path: Path
) -> None:
    save_tiny(tmp_path, tiny_llama(vocabulary_size=70_000))
    named_TC = np.resize(np.array(ids), (5, len(ids)))
    groups = [
        group_of([4, 69_999], replace(response_of([5, 65_536, 7, 8, 9], [1, 1, 0, 1, 1]), candidate_ids_TC=packed_TC))
        for packed_TC in (named_TC, named_TC.astype(width))
    ]
    async with loaded(HfConfig(model=str(tmp_path), rows_per_head_chunk=2)) as engine:
        expected, columns = [(await engine.score([group]))[0] for group in groups]
    assert expected[0].candidate_logprobs_NC is not None
    assert expected[0].candidate_logprobs_NC.shape == (4, len(ids))
    assert len(np.unique(expected[0].candidate_logprobs_NC)) == expected[0].candidate_logprobs_NC.size
    assert_bit_equal(columns, expected)
    np.testing.assert_array_equal(columns[0].candidate_logprobs_NC, expected[0].candidate_logprobs_NC)
