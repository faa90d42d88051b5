"""What alignment costs: registering a tokenizer, and scoring through one: python -m bench.alignment

register    RegisterTokenizer in the server: the wait, and what its memory grows by, for students of 49,152, 150,000 and
            262,144 tokens against a teacher of 262,144 and the other way round
score       one group of 8 responses of 192 teacher tokens after a prompt of 64, decoded, scored and encoded as the
            server does it, in interleaved rounds; ratios of medians:
              own         the teacher's ids, unaligned
              own mask    the same through a registered tokenizer, policy MASK
              own canon.  policy CANONICAL
              stranger    the same text in the other tokenizer's ids, so at equal length for the teacher

Models: SmolLM2-135M (fp32) and the tokenizer of Gemma-3, from their packages (make bench-alignment); K = 32.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import TokenArray, encode_token_ids, token_dtype_for
from preceptor_server.alignment.aligner import build_aligner
from preceptor_server.callers import Caller
from preceptor_server.config import LimitsConfig, SchedulerConfig
from preceptor_server.edges.grpc.decoding import decode_score_request
from preceptor_server.edges.grpc.encoding import encode_score_response
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.engine import HfEngine
from preceptor_server.hosted import HostedTeacher
from preceptor_server.scheduling.scheduler import Scheduler
from preceptor_server.scoring import score_call
from preceptor_server.tenants.tenant import Tenant
from tokenizers import Tokenizer

from bench.registering import measure_registration
from bench.vocabularies import SMOLLM2_FILE, Vocabulary, load_vocabularies, smollm2_folder
from tests.integration.texts import BY_KIND

TOP_K = 32
ROUNDS = 15
NUM_RESPONSES = 8
RESPONSE_LENGTH = 192
PROMPT_LENGTH = 64


def to_ids(ids: TokenArray) -> pb.TokenIds:
    dtype = token_dtype_for(int(ids.max()) + 1)
    return pb.TokenIds(data=encode_token_ids(ids, dtype), dtype=pb.TokenDtype.ValueType(dtype))


async def measure_scoring(vocabularies: dict[str, Vocabulary]) -> dict[str, float]:
    """Median seconds of a group by way."""
    own, stranger = vocabularies["SmolLM2"], vocabularies["Gemma"]
    engine = HfEngine(HfConfig(model=str(smollm2_folder()), gguf_file=SMOLLM2_FILE))
    engine.load()
    scheduler = Scheduler(engine, SchedulerConfig(batch_window_ms=0))
    scheduler.start()
    aligner = build_aligner(own.tokenizer, engine.info(), LimitsConfig())
    teacher = HostedTeacher(
        name="teacher",
        engine=engine,
        tokenizer=own.tokenizer,
        aligner=aligner,
        scheduler=scheduler,
        limits=LimitsConfig(),
        max_queue_tokens=1_000_000,
    )
    strange = await aligner.registry.register(stranger.registration())
    assert strange is not None
    own_id = own.tokenizer.tokenizer_id
    as_own, as_strangers = texts_of_equal_length(own, stranger)
    requests = {
        "own": request(as_own, own_id, pb.SEGMENTATION_POLICY_AS_IS),
        "own mask": request(as_own, own_id, pb.SEGMENTATION_POLICY_MASK),
        "own canon.": request(as_own, own_id, pb.SEGMENTATION_POLICY_CANONICAL),
        "stranger": request(as_strangers, strange.tokenizer_id, pb.SEGMENTATION_POLICY_CANONICAL),
    }
    for name, one in requests.items():  # warms up, and shows that all ways feed the teacher as much
        print(f"{name:12}{await num_scored(one, teacher)}")
    ways: dict[str, Callable[[], Awaitable[object]]] = {
        name: lambda one=one: serve(one, teacher)  # type: ignore[misc]  # a bound default
        for name, one in requests.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            await way()
            times[name].append(time.perf_counter() - started)
    await scheduler.stop()
    engine.close()
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def texts_of_equal_length(own: Vocabulary, stranger: Vocabulary) -> tuple[list[TokenArray], list[TokenArray]]:
    """Eight pieces of the sample texts, of RESPONSE_LENGTH tokens each for the teacher, in both tokenizers' ids."""
    backend, other = Tokenizer.from_str(own.tokenizer.json), Tokenizer.from_str(stranger.tokenizer.json)
    text = "".join(BY_KIND[kind] for kind in ("prose", "arithmetic", "code"))
    ids = backend.encode(text, add_special_tokens=False).ids
    stride = (len(ids) - RESPONSE_LENGTH) // (NUM_RESPONSES - 1)
    pieces = [ids[start * stride : start * stride + RESPONSE_LENGTH] for start in range(NUM_RESPONSES)]
    theirs = [other.encode(backend.decode(piece), add_special_tokens=False).ids for piece in pieces]
    return [np.array(piece) for piece in pieces], [np.array(piece) for piece in theirs]


CALLER = Caller(tenant=Tenant(name="bench"), name="bench", transport="grpc")


def request(
    responses: list[TokenArray], registered_id: str, policy: pb.SegmentationPolicy.ValueType
) -> pb.ScoreRequest:
    return pb.ScoreRequest(
        tokenizer_id=registered_id,
        prompt=pb.Prompt(teacher_ids=to_ids(np.arange(100, 100 + PROMPT_LENGTH))),
        responses=[pb.Response(ids=to_ids(ids)) for ids in responses],
        top_k=TOP_K,
        temperature=1.0,
        segmentation=policy,
    )


async def serve(one: pb.ScoreRequest, teacher: HostedTeacher) -> bytes:
    """What a server does with a request, but for the socket."""
    scored = await score_call(decode_score_request(one), teacher, caller=CALLER, timeout_seconds=None)
    return encode_score_response(scored).SerializeToString()


async def num_scored(one: pb.ScoreRequest, teacher: HostedTeacher) -> str:
    answer = pb.ScoreResponse.FromString(await serve(one, teacher))
    statuses = np.frombuffer(b"".join(scores.status for scores in answer.responses), np.uint8)
    num_read = sum(len(scores.teacher_ids.data) // 2 for scores in answer.responses) or len(statuses)
    return (
        f"{len(statuses):5} tokens of the student, {int((statuses == 1).sum()):5} scored, {num_read:5} of the teacher"
    )


def main() -> int:
    """Prints two tables, then the same as JSON with the machine and the commit."""
    vocabularies = load_vocabularies()
    print("registering      against          seconds   server grows    child at its largest")
    registrations = {}
    for student, teacher in (
        ("SmolLM2", "Gemma"),
        ("Gemma/150k", "Gemma"),
        ("Gemma/150k", "SmolLM2"),
        ("Gemma", "SmolLM2"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            figures = measure_registration(vocabularies[student], vocabularies[teacher], Path(folder))
        registrations[f"{student} against {teacher}"] = figures
        seconds, server_mb, child_mb = figures["seconds"], figures["server_mb"], figures["child_mb"]
        print(f"{student:16} {teacher:16} {seconds:7.2f} {server_mb:11.0f} MB {child_mb:19.0f} MB")
    times = asyncio.run(measure_scoring(vocabularies))
    print("scoring          seconds a group   ratio to own")
    for name, median in times.items():
        print(f"{name:16} {median:15.3f} {median / times['own']:14.3f}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__, "commit": commit}
    print(json.dumps({"machine": machine, "registrations": registrations, "seconds_per_group": times}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
