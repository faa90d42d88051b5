"""Real runs whose teacher fails on a group of a step, or is not there, and a cache answers in its place."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from preceptor.v1 import teacher_pb2
from preceptor.wire import ERROR_DOMAIN

from tests.integration.servers import RunningServer, running_server
from tests.integration.trainers import RunFiles, run_training, start_training, wait_for_steps, write_run
from tests.tiny import save_tiny, tiny_llama

NUM_STEPS = 8
MARKED = "Please: Say red"
"""The teacher's prompt of the first line of the data."""
_SCORE = "/preceptor.v1.TeacherService/Score"
_DETAILS = "grpc-status-details-bin"
FAILS = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="the model raised; incident 7f3a in the log")
FAILS_INFO = error_details_pb2.ErrorInfo(reason="BAD_GROUP", domain=ERROR_DOMAIN, metadata={"incident": "7f3a"})
REFUSES = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="responses: no")
REFUSES_INFO = error_details_pb2.ErrorInfo(reason="INVALID_FIELD", domain=ERROR_DOMAIN, metadata={"field": "responses"})


@dataclass(slots=True)
class Faulty(grpc.GenericRpcHandler):
    """Hands every call on to a teacher server as it is, but for the scores of the marked group: those fail."""

    channel: grpc.Channel
    status: status_pb2.Status
    num_failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(details.method)

        def hand_on(message: bytes, context: grpc.ServicerContext) -> bytes:
            if details.method == _SCORE and _is_marked(teacher_pb2.ScoreRequest.FromString(message)):
                with self.lock:
                    self.num_failed += 1
                context.set_trailing_metadata(((_DETAILS, self.status.SerializeToString()),))
                context.abort(_code_of(self.status), self.status.message)
            try:
                return call(message, timeout=context.time_remaining())
            except grpc.RpcError as error:
                metadata: Any = error.trailing_metadata()  # Any: grpc's stubs type it as one thing here, another there
                context.set_trailing_metadata(metadata or ())
                context.abort(error.code(), error.details() or "")
                raise

        return grpc.unary_unary_rpc_method_handler(hand_on)


def _is_marked(request: teacher_pb2.ScoreRequest) -> bool:
    """Whether it scores a token of the marked group: before the first step every prompt is read, without any."""
    masks = [response.score_mask for response in request.responses]
    return request.prompt.text.text == MARKED and any(not mask or any(mask) for mask in masks)


def _code_of(status: status_pb2.Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


def _detailed(status: status_pb2.Status, info: error_details_pb2.ErrorInfo) -> status_pb2.Status:
    packed = any_pb2.Any()
    packed.Pack(info)
    return status_pb2.Status(code=status.code, message=status.message, details=[packed])


@contextmanager
def faulty(server: RunningServer, status: status_pb2.Status) -> Iterator[tuple[Faulty, str]]:
    """The proxy and its address, for the length of the block."""
    proxy = grpc.server(ThreadPoolExecutor(8))
    with grpc.insecure_channel(server.address) as channel:
        handler = Faulty(channel, status)
        proxy.add_generic_rpc_handlers((handler,))
        address = f"127.0.0.1:{proxy.add_insecure_port('127.0.0.1:0')}"
        proxy.start()
        try:
            yield handler, address
        finally:
            proxy.stop(grace=None).wait()


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("student"), tiny_llama(seed=1))


def _counts(files: RunFiles, name: str) -> list[float]:
    return [row[name] for row in files.steps()]


def test_a_run_goes_on_without_a_group_that_its_teacher_fails_on_as_if_the_example_were_absent(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path
) -> None:
    """Killed in between and resumed, too. The other run's teacher refuses the example wherever it is dealt, which takes
    it out of the step by another way."""
    with faulty(hf_server, _detailed(FAILS, FAILS_INFO)) as (proxy, address):
        files = write_run(tmp_path / "fails", student=student_folder, address=address, num_steps=NUM_STEPS)
        process = start_training(files)
        wait_for_steps(files, process, 5)  # one after a checkpoint
        process.kill()
        process.communicate()
        assert len(files.steps()) < NUM_STEPS
        num_before = proxy.num_failed
        status, output = run_training(files)
        assert status == 0, output
        num_again = proxy.num_failed - num_before
    with faulty(hf_server, _detailed(REFUSES, REFUSES_INFO)) as (refusing, address):
        other = write_run(tmp_path / "refuses", student=student_folder, address=address, num_steps=NUM_STEPS)
        status, told = run_training(other, "--data.on-bad-example", "skip")
        assert status == 0, told
    failed = _counts(files, "failed_groups")
    assert [row["step"] for row in files.steps()] == list(range(1, NUM_STEPS + 1))
    assert failed == _counts(other, "num_refused_groups")
    assert set(failed) == {0, 1}
    assert sum(failed) == refusing.num_failed
    assert num_again <= sum(failed) <= proxy.num_failed
    assert files.losses() == other.losses()
    assert files.weights() == other.weights()
    where = tmp_path / "fails" / "train.jsonl"
    log = (files.directory / "train.log").read_text()
    assert f"example={where}:1 teacher=teacher reason=BAD_GROUP incident='7f3a'" in log
    assert f"goes on without 1 group(s); the first: {where}:1: teacher 'teacher' failed on its group: " in output
    assert f"groups that failed at the teacher, and were left out: {sum(failed):.0f}" in output
    assert "failed at the teacher, and left out" in (files.directory / "report.html").read_text()


def test_the_limit_of_failed_groups_ends_a_run_saved_and_named(
    hf_server: RunningServer, student_folder: Path, tmp_path: Path
) -> None:
    with faulty(hf_server, _detailed(FAILS, FAILS_INFO)) as (_, address):
        files = write_run(tmp_path, student=student_folder, address=address, num_steps=NUM_STEPS)
        status, output = run_training(files, "--run.max-failed-share", "0", "--run.checkpoint-every-steps", "50")
    num_done = len(files.steps())
    assert status == 1
    assert "Traceback" not in output
    assert f"preceptor train: step {num_done + 1}: teachers failed on 1 of the last " in output
    assert "more than run.max_failed_share=0" in output
    assert "incident 7f3a in the log" in output
    if num_done:
        assert f"Step {num_done} is saved in {files.directory}/checkpoints/step-{num_done:06d}" in output
    status, output = run_training(files, "--teacher.address", hf_server.address)
    assert status == 0, output
    whole = write_run(tmp_path / "whole", student=student_folder, address=hf_server.address, num_steps=NUM_STEPS)
    status, output = run_training(whole)
    assert status == 0, output
    assert files.losses() == whole.losses()


def test_from_the_cache_a_run_trains_without_a_server_to_the_same_losses(
    tiny_folder: Path, student_folder: Path, tmp_path: Path
) -> None:
    cache = ("--teacher.cache", str(tmp_path / "scores.sqlite"))
    with running_server(tmp_path / "server", "--engine.model", str(tiny_folder)) as server:
        first = write_run(tmp_path / "first", student=student_folder, address=server.address, num_steps=NUM_STEPS)
        measured = ("--evaluation.loss", "true", "--evaluation.every-steps", "4")
        status, output = run_training(first, *cache, *measured)
        assert status == 0, output
    offline = (*cache, "--teacher.cache-mode", "offline", *measured)
    again = write_run(tmp_path / "again", student=student_folder, address=server.address, num_steps=NUM_STEPS)
    for name in ("train", "heldout"):
        assert (tmp_path / "again" / f"{name}.jsonl").read_bytes() == (
            tmp_path / "first" / f"{name}.jsonl"
        ).read_bytes()
    status, output = run_training(again, *offline)
    assert status == 0, output
    assert len(first.losses()) == NUM_STEPS
    assert again.losses() == first.losses()
    assert again.weights() == first.weights()
    assert _heldout_losses(again) == _heldout_losses(first)
    assert len(_heldout_losses(first)) == 3

    # Two steps more are not in it: the run ends, saved, and goes on from there once there is a server.
    status, output = run_training(again, *offline, "--run.num-steps", str(NUM_STEPS + 2))
    assert status == 1
    assert "Traceback" not in output
    assert "preceptor train: offline: score cache " in output
    assert len(again.losses()) == NUM_STEPS


def _heldout_losses(files: RunFiles) -> list[float]:
    lines = (files.directory / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["kind"] == "heldout"]
