"""TeacherService: what each method does with its message, or with what was decoded of it. The interceptor does the
rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.callers import Caller
from preceptor_server.calls import ScoreCall
from preceptor_server.edges.grpc.description import encode_info
from preceptor_server.edges.grpc.encoding import encode_score_response
from preceptor_server.edges.grpc.registration import (
    check_registers_nothing,
    decode_registration,
    encode_own_report,
    encode_report,
)
from preceptor_server.edges.grpc.sizes import off_loop
from preceptor_server.hosted import HostedTeacher
from preceptor_server.serving import NO_NOTES, Notes, ScoreService
from preceptor_server.weights import WeightUpdateCall, WeightUpdates


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCall:
    """What the interceptor knows of a call: the servicer's methods get it in the place of gRPC's own context."""

    caller: Caller
    timeout_seconds: float | None
    """Until the caller's deadline, when the call began to be served."""
    arrived: Callable[[], None]
    """To be called once the request is where it waits: what is large keeps its tenant's next one waiting until then."""
    notes: Notes = NO_NOTES
    """Its trace."""


class TeacherServicer:
    """TeacherService over the hosted teachers. Every method may raise a ServerError."""

    def __init__(self, service: ScoreService, weight_updates: WeightUpdates) -> None:
        self._service = service
        self._weight_updates = weight_updates

    async def GetInfo(self, request: pb.GetInfoRequest, context: ServedCall) -> pb.GetInfoResponse:
        teachers = self._service.teachers.allowed(context.caller.tenant)
        if request.include_tokenizer:  # megabytes
            return await asyncio.to_thread(encode_info, teachers, include_tokenizer=True)
        return encode_info(teachers, include_tokenizer=False)

    async def Score(self, call: ScoreCall, context: ServedCall) -> pb.ScoreResponse:
        scored = await self._service.score(
            call,
            context.caller,
            timeout_seconds=context.timeout_seconds,
            notes=context.notes,
            arrived=context.arrived,
        )
        del call  # its answer may be as large again
        return await off_loop(encode_score_response, scored, num_bytes=scored.num_bytes)

    async def RegisterTokenizer(
        self, request: pb.RegisterTokenizerRequest, context: ServedCall
    ) -> pb.RegisterTokenizerResponse:
        registration = decode_registration(request)
        context.arrived()
        with self._service.teachers.use(request.teacher, tenant=context.caller.tenant) as teacher:
            aligner = teacher.aligner
            if aligner is None:
                check_registers_nothing(registration, teacher)
                return pb.RegisterTokenizerResponse(tokenizer_id=request.tokenizer_id, report=encode_own_report())
            alignment = await aligner.registry.register(registration)
            if alignment is None:
                return pb.RegisterTokenizerResponse(tokenizer_id=request.tokenizer_id, needs_tokenizer=True)
            # It names each special token of the student's: a hundred thousand take a second.
            report = await asyncio.to_thread(encode_report, alignment, aligner.vocabulary)
            return pb.RegisterTokenizerResponse(tokenizer_id=alignment.tokenizer_id, report=report)

    async def UpdateWeights(self, request: pb.UpdateWeightsRequest, context: ServedCall) -> pb.UpdateWeightsResponse:
        call = WeightUpdateCall(path=request.path, adapter=request.adapter, unload=request.unload)
        teacher: HostedTeacher
        with self._service.teachers.use(request.teacher, tenant=context.caller.tenant) as teacher:
            done = await self._weight_updates.update(call, teacher)
        return pb.UpdateWeightsResponse(
            revision=done.revision, previous_revision=done.previous_revision, paused_ms=done.paused_ms
        )
