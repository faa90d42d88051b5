"""The start-up canary of the alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from preceptor.wire import SegmentationPolicy
from preceptor_server.alignment.aligner import Aligner, build_aligner
from preceptor_server.alignment.reader import Reader
from preceptor_server.alignment.reading import Reading
from preceptor_server.alignment.selftest import check_alignment
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.alignment.types import Alignment
from preceptor_server.config import LimitsConfig
from preceptor_server.errors import InvalidTokenizerError, StartupError
from preceptor_server.types import GroupColumns, ResponseColumns, ResponseToScore, ScoreGroup
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.engines.fake import FakeEngine
from tests.unit.server.alignment.tokenizers_for_tests import byte_level, gemma_like, llama2_like, unigram, with_nfc


def rolled(columns: ResponseColumns) -> ResponseColumns:
    """Every row one position late, the last one first: all means stay what they are."""
    return ResponseColumns(
        status_T=columns.status_T,
        **{name: np.roll(getattr(columns, name), 1, axis=0) for name in ResponseColumns.__slots__[1:-1]},
    )


class LateEngine(FakeEngine):
    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        return [tuple(rolled(columns) for columns in group) for group in await super().score(batch)]


def fake(engine: type[FakeEngine] = FakeEngine, *, vocabulary_size: int) -> FakeEngine:
    return engine(vocabulary_size=vocabulary_size)


def aligner_of(tokenizer_json: str, *, vocabulary_size: int = 0) -> tuple[Aligner, int]:
    tokenizer = TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json)))
    size = vocabulary_size or tokenizer.vocabulary_size
    return build_aligner(tokenizer, fake(vocabulary_size=size).info(), LimitsConfig()), size


@pytest.mark.parametrize("family", [byte_level, gemma_like, llama2_like, unigram, with_nfc])
async def test_every_family_of_tokenizers_passes(family) -> None:  # type: ignore[no-untyped-def]  # cached functions
    aligner, size = aligner_of(family())
    assert await check_alignment(fake(vocabulary_size=size), aligner) < 1e-5


async def test_padded_vocabulary_passes() -> None:
    aligner, size = aligner_of(byte_level(), vocabulary_size=512)
    assert await check_alignment(fake(vocabulary_size=size), aligner) < 1e-5


async def test_shift_by_one_token_fails_although_no_mean_moves() -> None:
    aligner, size = aligner_of(byte_level())
    response = ResponseToScore(ids_T=np.arange(40, 70), score_mask_T=np.ones(30, np.bool_))
    group = ScoreGroup(prompt_ids_P=np.array([1]), responses=(response,), top_k=4, temperature=1.0)
    right = (await fake(vocabulary_size=size).score([group]))[0][0]
    late = (await fake(LateEngine, vocabulary_size=size).score([group]))[0][0]
    for name in ("sampled_logprobs_N", "entropies_N", "support_logprobs_NK", "log_tail_mass_N"):
        assert getattr(late, name).mean() == pytest.approx(getattr(right, name).mean(), rel=1e-5)
    with pytest.raises(StartupError, match="response 0 token"):
        await check_alignment(fake(LateEngine, vocabulary_size=size), aligner)


class LateReader(Reader):
    """Asks one token late."""

    def read(
        self,
        responses: Sequence[ResponseToScore],
        alignment: Alignment,
        *,
        policy: SegmentationPolicy,
        room: int,
        paper_token_ids: Sequence[int] = (),
    ) -> list[Reading]:
        readings = super().read(
            responses, alignment, policy=policy, room=room, paper_token_ids=paper_token_ids
        )  # fmt: skip
        return [replace(reading, rows_N=np.roll(reading.rows_N, 1)) for reading in readings]


async def test_reading_that_asks_one_token_late_fails() -> None:
    aligner, size = aligner_of(byte_level())
    with pytest.raises(InvalidTokenizerError, match="cuts the bytes of its own tokens into other tokens"):
        await check_alignment(fake(vocabulary_size=size), replace(aligner, reader=LateReader(aligner.segmenter)))
