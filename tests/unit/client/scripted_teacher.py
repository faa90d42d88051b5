"""A teacher server that follows a script: it aborts, hangs, lies or answers honestly, in the order it was told.

Its honest answers come from a dense log-softmax over seeded random logits, computed here on its own.
"""

# V = vocabulary, T = tokens of a response, N = scored positions, K = support size, C = candidates per position

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from preceptor.v1 import teacher_pb2
from preceptor.v1.teacher_pb2_grpc import TeacherServiceServicer, add_TeacherServiceServicer_to_server
from preceptor.wire import (
    LogprobDtype,
    PositionStatus,
    TokenDtype,
    decode_score_mask,
    decode_token_ids,
    digest_of_scored_ids,
    encode_bytes,
    encode_logprobs,
    encode_token_ids,
)

V = 97
TEXT_PROMPT_IDS = (5, 6, 7)
"""What any text or chat prompt is read as."""


@dataclass(frozen=True, kw_only=True)
class Abort:
    """Fails the call."""

    code: grpc.StatusCode
    message: str = "scripted"
    reason: str = ""
    domain: str = "preceptor"
    field: str = ""
    retry_after_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Hang:
    """Keeps the caller waiting, then answers honestly."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Lie:
    """Answers honestly but for one change."""

    change: Callable[[teacher_pb2.ScoreResponse], None]


@dataclass(frozen=True, kw_only=True)
class RegistrationLie:
    """Takes a tokenizer honestly but for one change of the answer."""

    change: Callable[[teacher_pb2.RegisterTokenizerResponse], None]


@dataclass(frozen=True, kw_only=True)
class UpdateLie:
    """Takes new weights honestly but for one change of the answer."""

    change: Callable[[teacher_pb2.UpdateWeightsResponse], None]


Step = Abort | Hang | Lie
UNKNOWN_TOKENIZER = Abort(
    code=grpc.StatusCode.NOT_FOUND,
    message="tokenizer_id: not registered here",
    reason="UNKNOWN_TOKENIZER",
    field="tokenizer_id",
)


@dataclass
class ScriptedTeacher(TeacherServiceServicer):
    """Takes one step of the script per call, then answers honestly for ever."""

    script: list[Step] = field(default_factory=list)
    requests: list[teacher_pb2.ScoreRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    num_cancelled: int = 0
    tokenizer_json: bytes = b""
    registrations: list[teacher_pb2.RegisterTokenizerRequest] = field(default_factory=list)
    registration_script: list[Abort | RegistrationLie] = field(default_factory=list)
    """One step per call of RegisterTokenizer, then honest answers for ever."""
    report: teacher_pb2.AlignmentReport = field(default_factory=lambda: alignment_report())
    is_strict: bool = False
    """Whether Score refuses a tokenizer id that was not handed over."""
    known: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what was handed over, and the ids that stand for them. Cleared, it has lost them all."""
    has_other_tokenizers: bool = True
    takes_chat_arguments: bool = False
    adapters: dict[str, str] = field(default_factory=dict)
    """Names of adapters and their revisions."""
    updates: list[teacher_pb2.UpdateWeightsRequest] = field(default_factory=list)
    update_script: list[Abort | Hang | UpdateLie] = field(default_factory=list)
    """One step per call of UpdateWeights, then honest answers for ever: each update is called after its path."""
    revision: str = "r1"
    info_changes: dict[str, str | int] = field(default_factory=dict)
    """Fields of its teacher, or of its limits, that GetInfo tells otherwise."""
    num_infos: int = 0

    async def Score(
        self, request: teacher_pb2.ScoreRequest, context: grpc.aio.ServicerContext[Message, Message]
    ) -> teacher_pb2.ScoreResponse:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.is_strict and request.tokenizer_id not in ("", *self.known.values()):
            await _abort(context, UNKNOWN_TOKENIZER)
        answer = honest_answer(request)
        match self.script.pop(0) if self.script else None:
            case Abort() as abort:
                await _abort(context, abort)
            case Hang(seconds=seconds):
                await self._sleep(seconds)
            case Lie(change=change):
                change(answer)
        return answer

    async def GetInfo(
        self, request: teacher_pb2.GetInfoRequest, context: grpc.aio.ServicerContext[Message, Message]
    ) -> teacher_pb2.GetInfoResponse:
        self.num_infos += 1
        answer = teacher_pb2.GetInfoResponse(
            server_version="9.8.7",
            teachers=[
                teacher_pb2.TeacherInfo(
                    name="tutor",
                    revision=self.revision,
                    engine="fake",
                    model="tiny",
                    dtype="float32",
                    device="cpu",
                    vocabulary_size=V,
                    max_model_len=64,
                    tokenizer_id="tok",
                    vocabulary_id="voc",
                    special_tokens=[teacher_pb2.SpecialToken(id=3, text="<end>")],
                    end_token_ids=[3, 4],
                    has_chat_template=True,
                    capabilities=teacher_pb2.Capabilities(
                        temperature=True,
                        candidates=True,
                        other_tokenizers=self.has_other_tokenizers,
                        entropies=True,
                        weight_updates=True,
                        chat_arguments=self.takes_chat_arguments,
                    ),
                    adapters=[
                        teacher_pb2.AdapterInfo(name=name, revision=revision)
                        for name, revision in self.adapters.items()
                    ],
                    tokenizer_json=self.tokenizer_json if request.include_tokenizer else b"",
                )
            ],
            limits=teacher_pb2.Limits(
                max_top_k=64,
                max_responses=8,
                max_group_tokens=512,
                max_message_bytes=1 << 20,
                max_queue_tokens=4096,
                max_tokenizer_bytes=1 << 19,
            ),
        )
        for name, value in self.info_changes.items():
            setattr(
                answer.limits if name in answer.limits.DESCRIPTOR.fields_by_name else answer.teachers[0], name, value
            )
        return answer

    async def RegisterTokenizer(
        self, request: teacher_pb2.RegisterTokenizerRequest, context: grpc.aio.ServicerContext[Message, Message]
    ) -> teacher_pb2.RegisterTokenizerResponse:
        self.registrations.append(request)
        step = self.registration_script.pop(0) if self.registration_script else None
        if isinstance(step, Abort):
            await _abort(context, step)
        if request.tokenizer_json:
            self.known[request.tokenizer_id] = f"with-ends-{request.tokenizer_id[:8]}"
        answer = teacher_pb2.RegisterTokenizerResponse(needs_tokenizer=True)
        if request.tokenizer_id in self.known:
            registered_id = self.known[request.tokenizer_id]
            answer = teacher_pb2.RegisterTokenizerResponse(tokenizer_id=registered_id, report=self.report)
        if isinstance(step, RegistrationLie):
            step.change(answer)
        return answer

    async def UpdateWeights(
        self, request: teacher_pb2.UpdateWeightsRequest, context: grpc.aio.ServicerContext[Message, Message]
    ) -> teacher_pb2.UpdateWeightsResponse:
        self.updates.append(request)
        step = self.update_script.pop(0) if self.update_script else None
        if isinstance(step, Abort):
            await _abort(context, step)
        if isinstance(step, Hang):
            await self._sleep(step.seconds)
        previous = self.adapters.get(request.adapter, "") if request.adapter else self.revision
        revision = "" if request.unload else f"of {request.path}"
        if request.unload:
            del self.adapters[request.adapter]
        elif request.adapter:
            self.adapters[request.adapter] = revision
        else:
            self.revision = revision
        answer = teacher_pb2.UpdateWeightsResponse(revision=revision, previous_revision=previous, paused_ms=12.5)
        if isinstance(step, UpdateLie):
            step.change(answer)
        return answer

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


@asynccontextmanager
async def serving(teacher: ScriptedTeacher, *, port: int = 0, max_message_bytes: int = 64 << 20) -> AsyncIterator[str]:
    """Serves until the block ends; yields the address."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", max_message_bytes), ("grpc.so_reuseport", 0)])
    add_TeacherServiceServicer_to_server(teacher, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


def alignment_report() -> teacher_pb2.AlignmentReport:
    """Two tokenizers that share a vocabulary and, under other names, the end of a response."""
    return teacher_pb2.AlignmentReport(
        relation=teacher_pb2.VOCABULARY_RELATION_IDENTICAL,
        mapped_share=1.0,
        projected_share=0.5,
        is_one_to_one=True,
        differences=["chat_template"],
        paired=[
            teacher_pb2.PairedTokens(
                student=teacher_pb2.SpecialToken(id=7, text="<eos>"),
                teacher=teacher_pb2.SpecialToken(id=3, text="<end>"),
                reason="end of response",
            )
        ],
        student_end_tokens=[teacher_pb2.SpecialToken(id=7, text="<eos>")],
        teacher_end_tokens=[teacher_pb2.SpecialToken(id=3, text="<end>")],
    )


def honest_answer(request: teacher_pb2.ScoreRequest) -> teacher_pb2.ScoreResponse:
    """What a good server says: full log-softmax of seeded logits, then top-K, tail, entropy, digest."""
    prompt_ids = _prompt_ids(request.prompt)
    kind = request.prompt.WhichOneof("kind")
    returned = None
    if kind in ("text", "chat"):
        data = encode_token_ids(prompt_ids, TokenDtype.U16)
        returned = teacher_pb2.TokenIds(data=data, dtype=teacher_pb2.TOKEN_DTYPE_U16)
    return teacher_pb2.ScoreResponse(
        request_id=request.request_id,
        teacher=request.teacher or "tutor",
        revision="r1",
        adapter=request.adapter,
        tokenizer_id=request.tokenizer_id or "tok",
        top_k=request.top_k,
        temperature=request.temperature,
        token_dtype=teacher_pb2.TOKEN_DTYPE_U16,
        logprob_dtype=request.logprob_dtype,
        prompt_ids=returned,
        segmentation=request.segmentation or teacher_pb2.SEGMENTATION_POLICY_AS_IS,
        responses=[_honest_scores(request, response, prompt_ids) for response in request.responses],
        timings=teacher_pb2.Timings(decode_ms=1.0, queue_ms=2.0, forward_ms=3.0, total_ms=6.5),
    )


def dense_logprobs(ids_T: npt.NDArray[np.int64], *, temperature: float) -> npt.NDArray[np.float64]:
    """The scripted teacher's whole distribution at each position of a response, shape [T, V]."""
    logits_TV = 3.0 * np.random.default_rng(int(ids_T.sum())).normal(size=(len(ids_T), V)) / temperature
    logprobs_TV: npt.NDArray[np.float64] = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
    return logprobs_TV


def _honest_scores(
    request: teacher_pb2.ScoreRequest, response: teacher_pb2.Response, prompt_ids: npt.NDArray[np.int64]
) -> teacher_pb2.ResponseScores:
    ids_T = decode_token_ids(response.ids.data, response.ids.dtype, field="ids")
    mask_T = decode_score_mask(response.score_mask, num_tokens=len(ids_T), field="score_mask")
    logprobs_NV = dense_logprobs(ids_T, temperature=request.temperature)[mask_T]
    support_NK = np.argsort(-logprobs_NV, axis=1)[:, : request.top_k]
    tail_N = np.exp(np.sort(logprobs_NV, axis=1)[:, : V - request.top_k]).sum(axis=1)
    sampled_N = np.take_along_axis(logprobs_NV, (ids_T[mask_T] % V)[:, None], axis=1)[:, 0]
    status_T = np.where(mask_T, PositionStatus.OK, PositionStatus.EXCLUDED).astype(np.uint8)
    f32 = LogprobDtype.F32
    with np.errstate(divide="ignore"):
        log_tail_N = np.log(tail_N)
    candidates = b""
    if response.HasField("candidates"):
        named = response.candidates
        ids_TC = decode_token_ids(named.ids.data, named.ids.dtype, field="candidates").reshape(
            -1, named.num_per_position
        )
        named_NC = np.take_along_axis(logprobs_NV, ids_TC[mask_T] % V, axis=1).astype(np.float32)
        candidates = encode_logprobs(named_NC, LogprobDtype(request.logprob_dtype))
    return teacher_pb2.ResponseScores(
        status=encode_bytes(status_T),
        support_ids=encode_token_ids(support_NK, TokenDtype.U16),
        support_logprobs=encode_logprobs(
            np.take_along_axis(logprobs_NV, support_NK, axis=1).astype(np.float32), LogprobDtype(request.logprob_dtype)
        ),
        sampled_logprobs=encode_logprobs(sampled_N.astype(np.float32), f32),
        log_tail_mass=encode_logprobs(log_tail_N.astype(np.float32), f32),
        entropies=encode_logprobs(-(np.exp(logprobs_NV) * logprobs_NV).sum(axis=1).astype(np.float32), f32),
        candidate_logprobs=candidates,
        digest=digest_of_scored_ids(prompt_ids, ids_T),
    )


def _prompt_ids(prompt: teacher_pb2.Prompt) -> npt.NDArray[np.int64]:
    match prompt.WhichOneof("kind"):
        case "student_ids":
            return decode_token_ids(prompt.student_ids.data, prompt.student_ids.dtype, field="prompt")
        case "teacher_ids":
            return decode_token_ids(prompt.teacher_ids.data, prompt.teacher_ids.dtype, field="prompt")
        case _:
            return np.array(TEXT_PROMPT_IDS)


async def _abort(context: grpc.aio.ServicerContext[Message, Message], abort: Abort) -> None:
    details: list[Message] = []
    if abort.reason:
        metadata = {"field": abort.field} if abort.field else {}
        details.append(error_details_pb2.ErrorInfo(reason=abort.reason, domain=abort.domain, metadata=metadata))
    if abort.retry_after_seconds is not None:
        delay = duration_pb2.Duration(nanos=round(abort.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=abort.code.value[0], message=abort.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()
    await context.abort(abort.code, abort.message, trailing)
