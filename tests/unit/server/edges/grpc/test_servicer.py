"""TeacherService's methods, called as the interceptor calls them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.edges.grpc import servicer
from preceptor_server.edges.grpc.servicer import ServedCall, TeacherServicer
from preceptor_server.errors import ServerError
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers
from preceptor_server.weights import WeightUpdates

from tests.unit.server.edges.http.asking import tiny_teacher
from tests.unit.server.preparing import CALLER

CALL = ServedCall(caller=CALLER, timeout_seconds=None, arrived=lambda: None)


def told_of_thread(work: Callable[..., Any], threads: list[int]) -> Callable[..., Any]:  # Any: as it is
    def told(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return work(*args, **options)

    return told


async def test_what_grows_with_a_tokenizer_is_written_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report names each special token of the student's tokenizer, though the request that asks for it is small."""
    threads: list[int] = []
    for name in ("encode_report", "encode_info"):
        monkeypatch.setattr(servicer, name, told_of_thread(getattr(servicer, name), threads))
    teacher = tiny_teacher()
    asked = TeacherServicer(ScoreService(Teachers([teacher])), WeightUpdates())
    info = await asked.GetInfo(pb.GetInfoRequest(include_tokenizer=True), CALL)
    [described] = info.teachers
    request = pb.RegisterTokenizerRequest(tokenizer_id=described.tokenizer_id, tokenizer_json=described.tokenizer_json)
    answer = await asked.RegisterTokenizer(request, CALL)
    assert answer.report.relation == pb.VOCABULARY_RELATION_IDENTICAL
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_tokenizer_that_takes_long_to_register_keeps_no_other_message_waiting() -> None:
    arrived: list[bool] = []
    call = ServedCall(caller=CALLER, timeout_seconds=1, arrived=lambda: arrived.append(True))
    servicer = TeacherServicer(ScoreService(Teachers()), WeightUpdates())
    with pytest.raises(ServerError, match="this server hosts none"):  # after it was decoded, and before the long part
        await servicer.RegisterTokenizer(pb.RegisterTokenizerRequest(tokenizer_id="ab", tokenizer_json=b"{}"), call)
    assert arrived == [True]
