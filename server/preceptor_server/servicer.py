"""The gRPC edge: takes messages from calls, and turns errors into statuses. No maths, no queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from preceptor.v1 import teacher_pb2 as pb
from preceptor.v1.teacher_pb2_grpc import TeacherServiceServicer
from preceptor.wire import CALLER_METADATA_KEY

from preceptor_server.decoding import check_teacher_name
from preceptor_server.encoding import encode_info
from preceptor_server.errors import InvalidRequestError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.registration import check_registers_nothing, decode_registration, encode_report
from preceptor_server.serving import Caller, ScoreService
from preceptor_server.status import failure_of
from preceptor_server.weights import WeightUpdates

# What grpc.aio hands to a servicer; its type parameters are not checked at run time.
ScoreContext = grpc.aio.ServicerContext[pb.ScoreRequest, pb.ScoreResponse]
InfoContext = grpc.aio.ServicerContext[pb.GetInfoRequest, pb.GetInfoResponse]
RegisterContext = grpc.aio.ServicerContext[pb.RegisterTokenizerRequest, pb.RegisterTokenizerResponse]
StreamContext = grpc.aio.ServicerContext[pb.ScoreStreamRequest, pb.ScoreStreamResponse]
UpdateContext = grpc.aio.ServicerContext[pb.UpdateWeightsRequest, pb.UpdateWeightsResponse]
AnyContext = ScoreContext | InfoContext | RegisterContext | StreamContext


class TeacherServicer(TeacherServiceServicer):
    """TeacherService over one hosted teacher."""

    def __init__(self, teacher: HostedTeacher, service: ScoreService | None = None) -> None:
        """`service` scores; by default one that nobody observes."""
        self._teacher = teacher
        self._service = service or ScoreService(teacher)
        self._weight_updates = WeightUpdates(teacher)

    async def GetInfo(self, request: pb.GetInfoRequest, context: InfoContext) -> pb.GetInfoResponse:
        return encode_info(self._teacher, include_tokenizer=request.include_tokenizer)

    async def RegisterTokenizer(
        self, request: pb.RegisterTokenizerRequest, context: RegisterContext
    ) -> pb.RegisterTokenizerResponse:
        try:
            return await self._register(request)
        except Exception as error:  # the edge: every error becomes a status, unforeseen ones are logged
            await context.abort_with_status(failure_of(error).to_status())
            raise

    async def UpdateWeights(self, request: pb.UpdateWeightsRequest, context: UpdateContext) -> pb.UpdateWeightsResponse:
        try:
            return await self._weight_updates.update(request)
        except Exception as error:  # the edge: every error becomes a status, unforeseen ones are logged
            await context.abort_with_status(failure_of(error).to_status())
            raise

    async def Score(self, request: pb.ScoreRequest, context: ScoreContext) -> pb.ScoreResponse:
        try:
            return await self._score(request, context)
        except Exception as error:  # the edge: every error becomes a status, unforeseen ones are logged
            await context.abort_with_status(failure_of(error).to_status())
            raise

    async def ScoreStream(
        self, request_iterator: AsyncIterator[pb.ScoreStreamRequest], context: StreamContext
    ) -> AsyncIterator[pb.ScoreStreamResponse]:
        """Reads ahead as far as admission allows, and answers in the order of completion."""
        answers: asyncio.Queue[pb.ScoreStreamResponse | None] = asyncio.Queue()
        in_flight: dict[str, asyncio.Task[None]] = {}
        reader = asyncio.create_task(self._read_stream(request_iterator, context, in_flight, answers))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await reader
        finally:
            for task in (reader, *in_flight.values()):
                task.cancel()

    async def _read_stream(
        self,
        requests: AsyncIterator[pb.ScoreStreamRequest],
        context: StreamContext,
        in_flight: dict[str, asyncio.Task[None]],
        answers: asyncio.Queue[pb.ScoreStreamResponse | None],
    ) -> None:
        async def answer(request: pb.ScoreRequest) -> None:
            result = pb.ScoreStreamResponse(request_id=request.request_id)
            try:
                result.response.CopyFrom(await self._score(request, context))
            except Exception as error:  # noqa: BLE001  # the edge: one group fails, the stream goes on
                result.error.CopyFrom(failure_of(error).to_stream_error())
            in_flight.pop(request.request_id, None)
            await answers.put(result)

        try:
            async for message in requests:
                request = message.request
                if not request.request_id or request.request_id in in_flight:
                    problem = InvalidRequestError("request.request_id", "must be set, and unlike any other in flight")
                    error = failure_of(problem).to_stream_error()
                    await answers.put(pb.ScoreStreamResponse(request_id=request.request_id, error=error))
                    continue
                in_flight[request.request_id] = asyncio.create_task(answer(request))
            await asyncio.gather(*in_flight.values())
        finally:
            answers.put_nowait(None)

    async def _score(self, request: pb.ScoreRequest, context: AnyContext) -> pb.ScoreResponse:
        caller = Caller(name=_caller_of(context), transport="grpc")
        return await self._service.score(request, caller=caller, timeout_seconds=context.time_remaining())

    async def _register(self, request: pb.RegisterTokenizerRequest) -> pb.RegisterTokenizerResponse:
        check_teacher_name(request.teacher, self._teacher)
        registration = decode_registration(request)
        aligner = self._teacher.aligner
        if aligner is None:
            check_registers_nothing(registration, self._teacher)
            report = pb.AlignmentReport(
                relation=pb.VOCABULARY_RELATION_IDENTICAL, mapped_share=1.0, projected_share=1.0, is_one_to_one=True
            )
            return pb.RegisterTokenizerResponse(tokenizer_id=request.tokenizer_id, report=report)
        alignment = await aligner.registry.register(registration)
        if alignment is None:
            return pb.RegisterTokenizerResponse(tokenizer_id=request.tokenizer_id, needs_tokenizer=True)
        report = encode_report(alignment, aligner.vocabulary)
        return pb.RegisterTokenizerResponse(tokenizer_id=alignment.tokenizer_id, report=report)


def _caller_of(context: AnyContext) -> str:
    """Who asks, for fairness: the name that the client gives itself, else where it connects from."""
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_METADATA_KEY:
            return str(value)
    return str(context.peer())
