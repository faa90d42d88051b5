from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from preceptor.wire import VocabularyRelation
from preceptor_server.alignment.exchange import PairingJob
from preceptor_server.alignment.flights import MAX_WAITING
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.kept import MAX_ALIGNMENTS_PER_PAIRING
from preceptor_server.alignment.registry import AlignmentRegistry
from preceptor_server.alignment.types import Pairing, TeacherVocabulary, TokenKind, TokenTable
from preceptor_server.config import LimitsConfig
from preceptor_server.errors import InvalidTokenizerError, QueueFullError, UnknownTokenizerError

OWN_ID = "0" * 64
END_ID = 2
TABLE = TokenTable(
    kinds_V=np.array([TokenKind.TEXT, TokenKind.TEXT, TokenKind.SPECIAL, TokenKind.SPECIAL], np.uint8),
    blob=b"ab",
    offsets_V1=np.array([0, 1, 2, 2, 2]),
    special_texts={2: "<end>", 3: "<turn>"},
)
TEACHER = TeacherVocabulary(table=TABLE, parts={})


def identical() -> Pairing:
    ids = np.arange(4, dtype=np.int32)
    empty = np.zeros(0, np.int32)
    return Pairing(
        student=TABLE,
        relation=VocabularyRelation.IDENTICAL,
        differences=(),
        teacher_of_student_U=ids,
        projection_V=ids,
        with_space_V=empty,
        without_space_V=empty,
        warnings=(),
    )


@dataclass
class FakeWorker:
    """Says that every tokenizer is the teacher's, once it may."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: InvalidTokenizerError | None = None
    jobs: list[PairingJob] = field(default_factory=list)
    num_running: int = 0
    num_cancelled: int = 0

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def pair(self, job: PairingJob) -> Pairing:
        self.jobs.append(job)
        self.num_running += 1
        assert self.num_running == 1, "one at a time"
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        if self.refusal is not None:
            raise self.refusal
        return identical()


def registry(worker: FakeWorker, *, max_tokenizers: int = 16, max_bytes: int = 4096) -> AlignmentRegistry:
    limits = LimitsConfig(max_tokenizers=max_tokenizers, max_tokenizer_bytes=max_bytes)
    return AlignmentRegistry(TEACHER, own_tokenizer_id=OWN_ID, teacher_end_ids=(END_ID,), limits=limits, worker=worker)


def handed_over(name: str = "student", **more: Any) -> Registration:  # Any: fields of Registration
    return Registration(**{"tokenizer_id": name, "tokenizer_json": name.encode(), **more})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_teachers_own_tokenizer_is_there_from_the_start() -> None:
    worker = FakeWorker()
    known = registry(worker)
    alignment = known.get(OWN_ID)
    assert alignment.tokenizer_id == OWN_ID
    assert alignment.projection_V.tolist() == [0, 1, 2, 3]
    assert await known.register(Registration(tokenizer_id=OWN_ID)) is alignment
    assert worker.jobs == []


async def test_the_teachers_own_tokenizer_with_another_end_token_needs_no_worker() -> None:
    worker = FakeWorker()
    known = registry(worker, max_tokenizers=1)
    alignment = await known.register(Registration(tokenizer_id=OWN_ID, end_token_ids=(3,), vocabulary_size=4))
    assert alignment is not None
    assert alignment.merges_end_tokens
    assert alignment.tokenizer_id != OWN_ID
    for index in range(5):
        await known.register(handed_over(f"stranger {index}"))
    assert known.get(alignment.tokenizer_id) is alignment
    assert not known.get(OWN_ID).merges_end_tokens
    assert len(worker.jobs) == 5


async def test_an_unknown_tokenizer_is_asked_for_and_then_known() -> None:
    worker = FakeWorker()
    known = registry(worker)
    assert await known.register(Registration(tokenizer_id="student")) is None
    alignment = await known.register(handed_over(chat_template="", vocabulary_size=0))
    assert alignment is not None
    assert alignment.tokenizer_id == "student"
    assert known.get("student") is alignment
    assert await known.register(Registration(tokenizer_id="student")) is alignment
    (job,) = worker.jobs
    assert (job.tokenizer_id, job.tokenizer_json, job.chat_template) == ("student", b"student", None)
    assert job.teacher is TEACHER
    assert job.cpu_seconds == 30


async def test_an_id_that_is_not_registered_is_refused_with_what_to_do() -> None:
    known = registry(FakeWorker())
    with pytest.raises(UnknownTokenizerError, match=r"register it \(again\)") as caught:
        known.get("nobody")
    assert caught.value.reason == "UNKNOWN_TOKENIZER"


async def test_the_registered_id_is_the_fingerprint_unless_more_is_said() -> None:
    plain = Registration(tokenizer_id="student")
    assert plain.registered_id == "student"
    others = [
        Registration(tokenizer_id="student", end_token_ids=(2,)),
        Registration(tokenizer_id="student", end_token_ids=(2, 3)),
        Registration(tokenizer_id="student", end_token_ids=(3, 2)),
        Registration(tokenizer_id="student", teacher_end_token_ids=(2,)),
        Registration(tokenizer_id="student", special_pairs={"<end>": "<turn>"}),
        Registration(tokenizer_id="student", vocabulary_size=4),
        Registration(tokenizer_id="another", vocabulary_size=4),
    ]
    ids = {registration.registered_id for registration in others}
    assert len(ids) == len(others)
    assert all(len(registered_id) == 64 for registered_id in ids)
    in_other_order = [
        Registration(tokenizer_id="s", special_pairs=pairs) for pairs in ({"a": "b", "c": "d"}, {"c": "d", "a": "b"})
    ]
    assert in_other_order[0].registered_id == in_other_order[1].registered_id


async def test_other_end_tokens_share_the_pairing_and_another_size_does_not() -> None:
    worker = FakeWorker()
    known = registry(worker)
    first = await known.register(handed_over())
    second = await known.register(Registration(tokenizer_id="student", end_token_ids=(3,)))
    assert first is not None
    assert second is not None
    assert second.pairing is first.pairing
    assert not first.merges_end_tokens
    assert second.merges_end_tokens
    assert await known.register(Registration(tokenizer_id="student", vocabulary_size=8)) is None
    await known.register(handed_over(vocabulary_size=8))
    assert [job.vocabulary_size for job in worker.jobs] == [0, 8]


async def test_teacher_end_tokens_of_the_request_replace_the_servers() -> None:
    known = registry(FakeWorker())
    alignment = await known.register(handed_over(end_token_ids=(3,), teacher_end_token_ids=(3,)))
    assert alignment is not None
    assert alignment.teacher_end_ids == (3,)
    assert not alignment.merges_end_tokens


async def test_the_tokenizer_used_least_recently_makes_room_with_all_its_alignments() -> None:
    known = registry(FakeWorker(), max_tokenizers=2)
    await known.register(handed_over("a"))
    more = await known.register(handed_over("a", end_token_ids=(3,)))
    assert more is not None
    await known.register(handed_over("b"))
    known.get("a")
    await known.register(handed_over("c"))
    assert known.get("a").tokenizer_id == "a"
    assert known.get(more.tokenizer_id) is more
    with pytest.raises(UnknownTokenizerError):
        known.get("b")
    await known.register(handed_over("b"))
    await known.register(handed_over("c"))
    for gone in ("a", more.tokenizer_id):
        with pytest.raises(UnknownTokenizerError):
            known.get(gone)
    assert await known.register(Registration(tokenizer_id="a")) is None


async def test_one_tokenizer_keeps_a_bounded_number_of_alignments() -> None:
    known = registry(FakeWorker())
    await known.register(handed_over())
    ids = []
    for index in range(MAX_ALIGNMENTS_PER_PAIRING):
        known.get("student")
        alignment = await known.register(
            handed_over(special_pairs={"<end>": "<turn>", "<turn>": "<end>"}, end_token_ids=(2,) * (index + 1))
        )
        assert alignment is not None
        ids.append(alignment.tokenizer_id)
    assert known.get("student").tokenizer_id == "student"
    with pytest.raises(UnknownTokenizerError):
        known.get(ids[0])
    assert known.get(ids[1]).tokenizer_id == ids[1]


async def test_concurrent_registrations_of_one_tokenizer_share_one_worker() -> None:
    worker = FakeWorker()
    known = registry(worker)
    worker.may_answer.clear()
    tasks = [asyncio.create_task(known.register(handed_over(end_token_ids=ends))) for ends in ((), (2,), (3,), (3,))]
    await settle()
    worker.may_answer.set()
    alignments = await asyncio.gather(*tasks)
    assert len(worker.jobs) == 1
    assert len({id(alignment.pairing) for alignment in alignments if alignment}) == 1
    assert len({alignment.tokenizer_id for alignment in alignments if alignment}) == 3


async def test_a_false_json_under_the_same_id_does_not_stand_in_for_the_true_one() -> None:
    worker = FakeWorker()
    known = registry(worker)
    worker.may_answer.clear()
    tasks = [asyncio.create_task(known.register(handed_over(tokenizer_json=data))) for data in (b"false", b"true")]
    await settle()
    worker.may_answer.set()
    await asyncio.gather(*tasks)
    assert [job.tokenizer_json for job in worker.jobs] == [b"false", b"true"]


async def test_a_cancelled_caller_does_not_cancel_the_others() -> None:
    worker = FakeWorker()
    known = registry(worker)
    worker.may_answer.clear()
    first, second = (asyncio.create_task(known.register(handed_over())) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    assert worker.num_cancelled == 0
    worker.may_answer.set()
    assert await second is known.get("student")
    assert first.cancelled()


async def test_when_every_caller_is_cancelled_the_worker_is_stopped_and_the_next_one_begins_anew() -> None:
    worker = FakeWorker()
    known = registry(worker)
    worker.may_answer.clear()
    tasks = [asyncio.create_task(known.register(handed_over())) for _ in range(2)]
    await settle()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    worker.may_answer.set()
    assert await known.register(handed_over()) is known.get("student")
    assert worker.num_cancelled == 1
    assert len(worker.jobs) == 2


async def test_beyond_the_tokenizers_that_may_wait_callers_are_told_to_come_back() -> None:
    worker = FakeWorker()
    known = registry(worker)
    worker.may_answer.clear()
    tasks = [asyncio.create_task(known.register(handed_over(f"s{i}"))) for i in range(1 + MAX_WAITING)]
    await settle()
    with pytest.raises(QueueFullError) as caught:
        await known.register(handed_over("one too many"))
    assert caught.value.retry_after_seconds > 0
    worker.may_answer.set()
    await asyncio.gather(*tasks)
    assert await known.register(handed_over("one too many")) is not None


async def test_a_refusal_reaches_every_caller_and_is_not_remembered() -> None:
    worker = FakeWorker(refusal=InvalidTokenizerError("is broken", reason="BROKEN"))
    known = registry(worker)
    tasks = [asyncio.create_task(known.register(handed_over())) for _ in range(2)]
    for task in tasks:
        with pytest.raises(InvalidTokenizerError, match="is broken"):
            await task
    worker.refusal = None
    assert await known.register(handed_over()) is not None
    assert len(worker.jobs) == 2


async def test_end_tokens_that_do_not_exist_are_refused_and_the_pairing_is_kept() -> None:
    worker = FakeWorker()
    known = registry(worker)
    with pytest.raises(InvalidTokenizerError, match="end_token_ids"):
        await known.register(handed_over(end_token_ids=(4,)))
    with pytest.raises(UnknownTokenizerError):
        known.get(handed_over(end_token_ids=(4,)).registered_id)
    assert await known.register(Registration(tokenizer_id="student", end_token_ids=(3,))) is not None
    assert len(worker.jobs) == 1


@pytest.mark.parametrize(
    ("more", "field_name", "reason"),
    [
        ({"tokenizer_json": b"x" * 4097}, "tokenizer_json", "TOKENIZER_TOO_LARGE"),
        ({"end_token_ids": (1,) * 1025}, "end_token_ids", "TOO_MANY"),
        ({"teacher_end_token_ids": (1,) * 1025}, "teacher_end_token_ids", "TOO_MANY"),
        ({"special_pairs": {str(i): "<end>" for i in range(1025)}}, "special_pairs", "TOO_MANY"),
        ({"chat_template": "x" * ((1 << 20) + 1)}, "chat_template", "TOO_MANY"),
        ({"vocabulary_size": (1 << 22) + 1}, "vocabulary_size", "TOO_MANY"),
    ],
)
async def test_what_is_too_much_is_refused_before_any_work(more: dict[str, Any], field_name: str, reason: str) -> None:
    worker = FakeWorker()
    known = registry(worker)
    with pytest.raises(InvalidTokenizerError) as caught:
        await known.register(handed_over(**more))
    assert (caught.value.field, caught.value.reason) == (field_name, reason)
    assert worker.jobs == []
    assert await known.register(handed_over()) is not None


async def test_a_refusal_by_size_names_the_setting() -> None:
    with pytest.raises(InvalidTokenizerError, match=r"limits\.max_tokenizer_bytes=4,096"):
        await registry(FakeWorker()).register(handed_over(tokenizer_json=b"x" * 4097))


async def test_closing_stops_the_worker_and_those_who_wait() -> None:
    worker = FakeWorker()
    known = registry(worker)
    worker.may_answer.clear()
    tasks = [asyncio.create_task(known.register(handed_over(name))) for name in ("a", "b")]
    await settle()
    await known.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, asyncio.CancelledError]
    assert worker.num_cancelled == 1
    assert len(worker.jobs) == 1
