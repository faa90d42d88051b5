"""A message of the wire as a call that a teacher has checked."""

from __future__ import annotations

import asyncio

from preceptor.v1 import teacher_pb2 as pb
from preceptor_server.callers import Caller
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.hosted import HostedTeacher
from preceptor_server.preparing import PreparedCall, prepare_call
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Tenant

CALLER = Caller(tenant=Tenant(name="me"), name="me", transport="grpc")


def prepared(request: pb.ScoreRequest, teacher: HostedTeacher) -> PreparedCall:
    """As the service would have it. Raises what finding the teacher, decoding and preparing raise."""
    return asyncio.run(prepared_here(request, teacher))


async def prepared_here(request: pb.ScoreRequest, teacher: HostedTeacher) -> PreparedCall:
    """The same inside an event loop."""
    call = decode_score_request(request)
    return await prepare_call(call, Teachers([teacher]).find(call.teacher, tenant=CALLER.tenant))
