from __future__ import annotations

import pytest
from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.edges.grpc.servicer import ServedCall, TeacherServicer
from preceptor_server.errors import ServerError
from preceptor_server.serving import ScoreService
from preceptor_server.teachers import Teachers
from preceptor_server.weights import WeightUpdates

from tests.unit.server.preparing import CALLER


async def test_tokenizer_that_takes_long_to_register_keeps_no_other_message_waiting() -> None:
    arrived: list[bool] = []
    call = ServedCall(caller=CALLER, timeout_seconds=1, arrived=lambda: arrived.append(True))
    servicer = TeacherServicer(ScoreService(Teachers()), WeightUpdates())
    with pytest.raises(ServerError, match="this server hosts none"):  # after it was decoded, and before the long part
        await servicer.RegisterTokenizer(pb.RegisterTokenizerRequest(tokenizer_id="ab", tokenizer_json=b"{}"), call)
    assert arrived == [True]
