"""What a call asks of the engine, and what is said of the weights that answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy, TokenArray
from preceptor_server.alignment.aligner import build_aligner
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.selftest import check_alignment
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer
from preceptor_server.calls import AskedResponse, ScoreCall, TeacherIds
from preceptor_server.config import LimitsConfig, SchedulerConfig
from preceptor_server.errors import UnknownTeacherError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import PreparedCall, prepare_call
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.scoring import score_call
from preceptor_server.selftest import check_engine
from preceptor_server.types import EngineInfo, GroupColumns, ScoreGroup
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.engines.fake import FakeEngine
from tests.unit.server.alignment.tokenizers_for_tests import byte_level, gemma_like
from tests.unit.server.groups import response_of
from tests.unit.server.hosting import hosted_teacher
from tests.unit.server.preparing import CALLER

TOP_K = 6


def tokenizer_of(tokenizer_json: str) -> TeacherTokenizer:
    return TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer_json)))


TEACHER, STUDENT = tokenizer_of(byte_level()), tokenizer_of(gemma_like())


class NarrowEngine(FakeEngine):
    """Answers no more than `max_top_k` tokens, and notes what it was asked."""

    def __init__(self, max_top_k: int | None) -> None:
        super().__init__(vocabulary_size=TEACHER.vocabulary_size)
        self.groups: list[ScoreGroup] = []
        self._max_top_k = max_top_k
        self._adapters["maths"] = 3

    def info(self) -> EngineInfo:
        return replace(super().info(), max_top_k=self._max_top_k)

    async def score(self, batch: Sequence[ScoreGroup]) -> list[GroupColumns]:
        self.groups += batch
        return await super().score(batch)


@asynccontextmanager
async def hosting(engine: NarrowEngine) -> AsyncIterator[HostedTeacher]:
    scheduler = Scheduler(engine, SchedulerConfig(batch_window_ms=0))
    scheduler.start()
    aligner = build_aligner(TEACHER, engine.info(), LimitsConfig())
    teacher = hosted_teacher(vocabulary_size=TEACHER.vocabulary_size, tokenizer=TEACHER)
    yield replace(teacher, engine=engine, aligner=aligner, scheduler=scheduler)
    await aligner.registry.close()
    await scheduler.stop()


async def call_of_a_stranger(teacher: HostedTeacher, *, mask: Sequence[int] | None = None) -> ScoreCall:
    """Of a student whose tokens are not the teacher's: up to twice K are asked for."""
    assert teacher.aligner is not None
    alignment = await teacher.aligner.registry.register(
        Registration(tokenizer_id=STUDENT.tokenizer_id, tokenizer_json=STUDENT.json.encode(), vocabulary_size=0)
    )
    assert alignment is not None
    ids_T = STUDENT.encode("area of", add_special_tokens=False, field="text")
    return ScoreCall(
        tokenizer_id=STUDENT.tokenizer_id,
        prompt=TeacherIds(ids_P=np.array([5, 6])),
        responses=(asked(ids_T, mask),),
        segmentation=SegmentationPolicy.CANONICAL,
        top_k=TOP_K,
        temperature=1.0,
        logprob_dtype=LogprobDtype.F32,
    )


def asked(ids_T: Sequence[int] | TokenArray, mask: Sequence[int] | None = None) -> AskedResponse:
    response = response_of(ids_T, mask)
    return AskedResponse(ids_T=response.ids_T, score_mask_T=response.score_mask_T)


@pytest.mark.parametrize(("max_top_k", "asked"), [(None, 12), (11, 11), (TOP_K, TOP_K)])
async def test_engine_is_never_asked_for_more_than_it_answers_and_rows_stay_as_wide(
    max_top_k: int | None, asked: int
) -> None:
    engine = NarrowEngine(max_top_k)
    async with hosting(engine) as teacher:
        scored = await score_call(await call_of_a_stranger(teacher), teacher, caller=CALLER, timeout_seconds=10)
    assert [group.top_k for group in engine.groups] == [asked]
    columns = scored.responses[0].columns
    num_rows = int((columns.status_T == PositionStatus.OK).sum())
    assert num_rows > 0
    assert columns.support_logprobs_NK.shape == (num_rows, TOP_K)
    mass_N = np.exp(columns.support_logprobs_NK).sum(axis=1) + np.exp(columns.log_tail_mass_N)
    np.testing.assert_allclose(mass_N, 1, atol=1e-5)  # float32 columns


async def test_self_tests_ask_for_no_more_than_the_engine_answers() -> None:
    engine = NarrowEngine(3)
    await check_engine(engine)
    aligner = build_aligner(TEACHER, engine.info(), LimitsConfig())
    await check_alignment(engine, aligner)
    await aligner.registry.close()
    assert {group.top_k for group in engine.groups} == {3}


@pytest.mark.parametrize(
    ("max_top_k", "allowed"), [(None, TEACHER.vocabulary_size), (20, 20), (2000, TEACHER.vocabulary_size)]
)
def test_callers_may_ask_for_what_limits_vocabulary_and_engine_allow(max_top_k: int | None, allowed: int) -> None:
    teacher = replace(hosted_teacher(), engine=NarrowEngine(max_top_k))
    assert teacher.max_top_k == allowed
    assert replace(teacher, limits=LimitsConfig(max_top_k=10)).max_top_k == 10


def unaligned(call: ScoreCall) -> ScoreCall:
    return replace(call, tokenizer_id="", segmentation=SegmentationPolicy.AS_IS, responses=(asked([7, 8]),))


def unchanged(call: ScoreCall) -> ScoreCall:
    return call


@pytest.mark.parametrize("change", [unaligned, unchanged], ids=["own tokenizer", "another tokenizer"])
@pytest.mark.parametrize(("adapter", "revision"), [("", "fake-{size}"), ("maths", "fake-{size}+3")])
async def test_adapter_reaches_the_engine_and_its_revision_the_answer(
    change: Callable[[ScoreCall], ScoreCall], adapter: str, revision: str
) -> None:
    engine = NarrowEngine(None)
    async with hosting(engine) as teacher:
        call = replace(change(await call_of_a_stranger(teacher)), adapter=adapter)
        scored = await score_call(call, teacher, caller=CALLER, timeout_seconds=10)
    assert [group.adapter for group in engine.groups] == [adapter]
    assert scored.revision == revision.format(size=TEACHER.vocabulary_size)


async def test_answer_about_nothing_names_the_weights_of_the_moment() -> None:
    engine = NarrowEngine(None)
    async with hosting(engine) as teacher:
        call = await call_of_a_stranger(teacher)
        nothing = asked(call.responses[0].ids_T, [0] * len(call.responses[0].ids_T))
        call = replace(call, responses=(nothing,), adapter="maths")
        scored = await score_call(call, teacher, caller=CALLER, timeout_seconds=10)
    assert (engine.groups, scored.revision) == ([], f"fake-{TEACHER.vocabulary_size}+3")


async def test_adapter_that_is_taken_away_while_the_call_is_prepared_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = NarrowEngine(None)

    async def prepare(*args: Any, **kwargs: Any) -> PreparedCall:  # Any: as they come
        prepared = await prepare_call(*args, **kwargs)
        await engine.unload_adapter("maths")
        return prepared

    monkeypatch.setattr("preceptor_server.scoring.prepare_call", prepare)
    async with hosting(engine) as teacher:
        call = replace(await call_of_a_stranger(teacher), adapter="maths")
        with pytest.raises(UnknownTeacherError, match="'maths' is not loaded"):
            await score_call(call, teacher, caller=CALLER, timeout_seconds=10)


async def test_group_of_which_nothing_is_to_be_scored_never_reaches_the_engine() -> None:
    engine = NarrowEngine(None)
    async with hosting(engine) as teacher:
        call = await call_of_a_stranger(teacher)
        ids_T = call.responses[0].ids_T
        call = replace(call, responses=(asked(ids_T, [0] * len(ids_T)),) * 2)
        for one in (call, replace(call, tokenizer_id="", segmentation=SegmentationPolicy.AS_IS)):
            scored = await score_call(one, teacher, caller=CALLER, timeout_seconds=10)
            assert scored.revision == teacher.info.revision_of("")
            for answered in scored.responses:
                assert answered.columns.status_T.tolist() == [PositionStatus.EXCLUDED] * len(ids_T)
                assert answered.columns.support_ids_NK.shape == (0, TOP_K)
    assert engine.groups == []
