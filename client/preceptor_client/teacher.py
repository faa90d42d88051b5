"""Asks a teacher server for scores: the async client, and its blocking twin. numpy in, numpy out, no torch.

`request` checks what is asked, `replicas` choose the server, `replica` asks it and reads the answer.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from preceptor.wire import LogprobDtype, SegmentationPolicy

from preceptor_client.affinity import prefix_of
from preceptor_client.channel import checked_addresses, checked_caller
from preceptor_client.connection import Connection, refuse_unless_positive
from preceptor_client.replica import Replica
from preceptor_client.replicas import Replicas
from preceptor_client.request import (
    CandidateIdArray,
    RegisterOptions,
    ScoreMask,
    ScoreOptions,
    TokenSequence,
    check_group,
    check_registration,
    check_weight_update,
)
from preceptor_client.retry import RetryEvent, RetryPolicy
from preceptor_client.types import GroupScores, Prompt, Registration, ServerInfo, WeightUpdate

__all__ = ["BlockingTeacherClient", "RetryEvent", "RetryPolicy", "ScoreOptions", "TeacherClient"]

DEFAULT_MAX_MESSAGE_BYTES = 64 << 20
_DEFAULT_RETRY = RetryPolicy()

ResultT = TypeVar("ResultT")


class TeacherClient:
    """One teacher, from inside an event loop. May be shared by any number of tasks of that loop."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 60.0,
        attempt_timeout_seconds: float | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        caller: str = "",
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        on_retry: Callable[[RetryEvent], None] | None = None,
    ) -> None:
        """`address`: host:port, or several with commas between, servers of the same teacher: groups whose prompts begin
        alike go to the same one, and to another while it is away. `timeout_seconds` covers all attempts of a call. An
        attempt that outlasts `attempt_timeout_seconds` is abandoned and repeated; None leaves it all the time there
        is."""
        addresses = checked_addresses(address)
        caller = checked_caller(caller)
        refuse_unless_positive("timeout_seconds", timeout_seconds)
        self._timeout_seconds = timeout_seconds
        connections = [
            Connection(
                one,
                attempt_timeout_seconds=attempt_timeout_seconds,
                retry=retry,
                caller=caller,
                max_message_bytes=max_message_bytes,
                on_retry=on_retry,
                is_patient=len(addresses) == 1,
            )
            for one in addresses
        ]
        self._replicas = Replicas([Replica(one) for one in connections], retry=retry, on_retry=on_retry)

    async def info(self, *, include_tokenizer: bool = False, timeout_seconds: float | None = None) -> ServerInfo:
        """What the server hosts, and its limits; with each teacher's tokenizer.json (megabytes) when asked."""
        return await self._replicas.info(
            include_tokenizer=include_tokenizer, timeout_seconds=self._timeout(timeout_seconds)
        )

    async def register_tokenizer(
        self,
        tokenizer_json: str,
        *,
        chat_template: str | None = None,
        teacher: str = "",
        end_token_ids: Sequence[int] = (),
        teacher_end_token_ids: Sequence[int] = (),
        special_pairs: Mapping[str, str] = {},
        vocabulary_size: int = 0,
        timeout_seconds: float | None = None,
    ) -> Registration:
        """Makes a student's tokenizer known; the JSON (text) travels only if the server lacks it. The answer's id is
        what `score` takes as `tokenizer_id`; a `score` that finds it lost registers the tokenizer again by itself.

        `end_token_ids`: the student's, the one that it is to learn first; empty = unknown. `teacher_end_token_ids`:
        empty = the teacher's own. `special_pairs`: texts of the student's special tokens to the teacher's.
        `vocabulary_size`: the student's number of logits; 0 = its tokenizer's. Raises InvalidRequestError."""
        request = check_registration(
            tokenizer_json,
            chat_template=chat_template,
            teacher=teacher,
            end_token_ids=end_token_ids,
            teacher_end_token_ids=teacher_end_token_ids,
            special_pairs=special_pairs,
            vocabulary_size=vocabulary_size,
        )
        return await self._replicas.register(request, timeout_seconds=self._timeout(timeout_seconds))

    async def score(
        self,
        prompt: Prompt,
        responses: Sequence[TokenSequence],
        *,
        top_k: int,
        temperature: float = 1.0,
        teacher: str = "",
        adapter: str = "",
        tokenizer_id: str = "",
        score_masks: Sequence[ScoreMask | None] | None = None,
        candidate_ids: Sequence[CandidateIdArray | None] | None = None,
        logprob_dtype: LogprobDtype = LogprobDtype.F16,
        batch_invariant: bool = False,
        segmentation: SegmentationPolicy | None = None,
        paper_token_ids: Sequence[int] = (),
        request_id: str | None = None,
        timeout_seconds: float | None = None,
    ) -> GroupScores:
        """The teacher's top-K at every position of the responses, verified. `proto/preceptor/v1/teacher.proto`
        describes the arguments; `timeout_seconds` replaces the client's own for this call. `segmentation`: None = the
        server's default; `paper_token_ids` go with PAPER alone, and it with at least one. `candidate_ids`: ids whose
        logprobs are wanted besides, in the vocabulary of the response, one array [T, C] or None for each; they need ids
        that correspond one to one with the teacher's, and a policy other than CANONICAL."""
        group = check_group(
            prompt,
            request_id=secrets.token_hex(16) if request_id is None else request_id,
            teacher=teacher,
            adapter=adapter,
            tokenizer_id=tokenizer_id,
            responses=responses,
            score_masks=score_masks,
            candidate_ids=candidate_ids,
            top_k=top_k,
            temperature=temperature,
            logprob_dtype=logprob_dtype,
            batch_invariant=batch_invariant,
            segmentation=segmentation,
            paper_token_ids=paper_token_ids,
        )
        return await self._replicas.ask(
            lambda replica, seconds: replica.score(group, timeout_seconds=seconds),
            prefix=prefix_of(group),
            timeout_seconds=self._timeout(timeout_seconds),
        )

    async def update_weights(
        self,
        path: str = "",
        *,
        adapter: str = "",
        unload: bool = False,
        teacher: str = "",
        timeout_seconds: float | None = None,
    ) -> WeightUpdate:
        """Has the teacher, or one of its adapters, take the weights at `path`, a folder inside the server's
        `engine.weights_folder`; `unload` takes the adapter away instead. Returns once they serve, which may take
        minutes: `timeout_seconds` shall be long, and `attempt_timeout_seconds` is not applied. Repeated only where
        nobody was reached (UNAVAILABLE). An update that has begun is carried through, whether or not it is waited for.
        Of several replicas each takes them, and each must: no score is taken from one that differs. Raises
        InvalidRequestError where the weights cannot be used: the old ones go on serving then."""
        check_weight_update(path, adapter=adapter, unload=unload)
        return await self._replicas.change(
            lambda replica, seconds: replica.update_weights(
                path, adapter=adapter, unload=unload, teacher=teacher, timeout_seconds=seconds
            ),
            timeout_seconds=self._timeout(timeout_seconds),
        )

    async def close(self) -> None:
        """Cancels what is in flight and closes the connections. Closing twice is fine."""
        await self._replicas.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _timeout(self, timeout_seconds: float | None) -> float:
        refuse_unless_positive("timeout_seconds", timeout_seconds)
        return self._timeout_seconds if timeout_seconds is None else timeout_seconds


class BlockingTeacherClient:
    """The same client for code without an event loop: a thread of its own runs one. May be shared between threads."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 60.0,
        attempt_timeout_seconds: float | None = None,
        retry: RetryPolicy = _DEFAULT_RETRY,
        caller: str = "",
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        on_retry: Callable[[RetryEvent], None] | None = None,
    ) -> None:
        """Arguments as for `TeacherClient`. `on_retry` is called in the client's thread: it must not wait for it."""
        self._client = TeacherClient(
            address,
            timeout_seconds=timeout_seconds,
            attempt_timeout_seconds=attempt_timeout_seconds,
            retry=retry,
            caller=caller,
            max_message_bytes=max_message_bytes,
            on_retry=on_retry,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"preceptor {address}", daemon=True)
        self._thread.start()

    def info(self, *, include_tokenizer: bool = False, timeout_seconds: float | None = None) -> ServerInfo:
        """As `TeacherClient.info`."""
        call = self._client.info(include_tokenizer=include_tokenizer, timeout_seconds=timeout_seconds)
        return _wait(self._start(call))

    def register_tokenizer(self, tokenizer_json: str, **options: Unpack[RegisterOptions]) -> Registration:
        """As `TeacherClient.register_tokenizer`."""
        return _wait(self._start(self._client.register_tokenizer(tokenizer_json, **options)))

    def score(self, prompt: Prompt, responses: Sequence[TokenSequence], **options: Unpack[ScoreOptions]) -> GroupScores:
        """As `TeacherClient.score`."""
        return _wait(self.submit(prompt, responses, **options))

    def submit(
        self, prompt: Prompt, responses: Sequence[TokenSequence], **options: Unpack[ScoreOptions]
    ) -> Future[GroupScores]:
        """Starts a score and returns at once. Cancelling the future cancels the call, also at the server."""
        return self._start(self._client.score(prompt, responses, **options))

    def update_weights(
        self,
        path: str = "",
        *,
        adapter: str = "",
        unload: bool = False,
        teacher: str = "",
        timeout_seconds: float | None = None,
    ) -> WeightUpdate:
        """As `TeacherClient.update_weights`."""
        call = self._client.update_weights(
            path, adapter=adapter, unload=unload, teacher=teacher, timeout_seconds=timeout_seconds
        )
        return _wait(self._start(call))

    def close(self) -> None:
        """Cancels what is in flight, closes the connection and ends the thread. Closing twice is fine."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all_and_close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, call: Coroutine[Any, Any, ResultT]) -> Future[ResultT]:  # Any: a coroutine's unused channels
        if self._loop.is_closed():
            call.close()
            raise RuntimeError("the client is closed")
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    async def _cancel_all_and_close(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.close()


def _wait(future: Future[ResultT]) -> ResultT:
    try:
        return future.result()
    finally:
        # Interrupted while waiting (Ctrl-C): nobody will read the answer.
        future.cancel()
