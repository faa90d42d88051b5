"""Asks a teacher server for scores: the async client, and its blocking twin. numpy in, numpy out, no torch.

`request` checks what is asked, `replicas` choose the server, `replica` asks it and reads the answer.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from preceptor.wire import LogprobDtype, SegmentationPolicy

from preceptor_client.access import find_access
from preceptor_client.cached_scoring import CachedScoring
from preceptor_client.channel import checked_addresses, checked_caller
from preceptor_client.connection import (
    DEFAULT_MAX_BYTES_IN_FLIGHT,
    DEFAULT_MAX_CONCURRENT_CALLS,
    Connection,
    refuse_unless_positive,
)
from preceptor_client.errors import NotInCacheError
from preceptor_client.options import ClientOptions
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
from preceptor_client.score_cache import ScoreCache
from preceptor_client.scoring import Scoring
from preceptor_client.tls import Pair
from preceptor_client.transport import Transport
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
        api_key: str | None = None,
        api_key_file: Path | None = None,
        ca: Path | None = None,
        cert: Pair | None = None,
        insecure_key: bool = False,
        objective: str = "",
        cache: ScoreCache | None = None,
        transport: Transport | None = None,
        hedge_seconds: float | None = None,
        max_concurrent_calls: int = DEFAULT_MAX_CONCURRENT_CALLS,
        max_bytes_in_flight: int = DEFAULT_MAX_BYTES_IN_FLIGHT,
    ) -> None:
        """`address`: host:port, or several with commas between, servers of the same teacher: groups whose prompts begin
        alike go to the same one, and to another while it is away. `timeout_seconds` covers all attempts of a call, and
        the wait for its turn: at most `max_concurrent_calls`, and so many bytes of requests, are under way at once at a
        server. An attempt that outlasts `attempt_timeout_seconds` is abandoned and repeated; None leaves it all the
        time there is.

        `api_key`, or the file that holds it, `ca` and `cert` (files of a certificate and its key) come from the
        environment where they are not given: see `access`. With `ca` or `cert`, or an address that begins with
        grpcs://, TLS is used. A key in plain text to another machine needs `insecure_key`. `objective` says what the
        calls are for, by a name that the server knows a priority for. `cache` answers what it has. `transport` answers
        in the place of a network. A score that one of several servers has not answered after `hedge_seconds` is asked
        of the next too. Raises ValueError, naming what to change."""
        addresses = checked_addresses(address)
        caller = checked_caller(caller)
        refuse_unless_positive("timeout_seconds", timeout_seconds)
        refuse_unless_positive("hedge_seconds", hedge_seconds)
        access = find_access(api_key=api_key, api_key_file=api_key_file, ca=ca, cert=cert, insecure_key=insecure_key)
        self._timeout_seconds = timeout_seconds
        self._transport = transport
        connections = [
            Connection(
                one,
                attempt_timeout_seconds=attempt_timeout_seconds,
                retry=retry,
                caller=caller,
                max_message_bytes=max_message_bytes,
                on_retry=on_retry,
                is_patient=len(addresses) == 1,
                access=access,
                objective=objective,
                max_concurrent_calls=max_concurrent_calls,
                max_bytes_in_flight=max_bytes_in_flight,
                transport=transport,
            )
            for one in addresses
        ]
        self._replicas = Replicas(
            [Replica(one) for one in connections], retry=retry, on_retry=on_retry, hedge_seconds=hedge_seconds
        )
        self._cached = None
        if cache is not None:
            self._cached = CachedScoring(
                cache,
                addresses=self._replicas.addresses,
                ask_info=lambda seconds: self._replicas.info(include_tokenizer=False, timeout_seconds=seconds),
                num_losses=lambda: self._replicas.num_losses,
            )
        max_calls = max_concurrent_calls * len(addresses)
        self._scoring = Scoring(lambda: self._replicas, max_calls=max_calls, cached=self._cached)

    async def info(self, *, include_tokenizer: bool = False, timeout_seconds: float | None = None) -> ServerInfo:
        """What the server hosts, and its limits; with each teacher's tokenizer.json (megabytes) when asked."""
        seconds = self._timeout(timeout_seconds)
        if self._cached is not None and self._cached.is_offline:
            return await self._cached.stored_info(include_tokenizer=include_tokenizer)
        info = await self._replicas.info(include_tokenizer=include_tokenizer, timeout_seconds=seconds)
        if self._cached is not None:
            await self._cached.saw(info, include_tokenizer=include_tokenizer)
        return info

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
        seconds = self._timeout(timeout_seconds)
        if self._cached is not None and self._cached.is_offline:
            return await self._cached.stored_registration(request)
        registration = await self._replicas.register(request, timeout_seconds=seconds)
        if self._cached is not None:
            await self._cached.saw_registration(request, registration)
        return registration

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
        return await self._scoring.score(group, timeout_seconds=self._timeout(timeout_seconds))

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
        seconds = self._timeout(timeout_seconds)
        if self._cached is not None:
            if self._cached.is_offline:
                raise NotInCacheError("offline: new weights need a server; leave out the update, or the mode offline")
            self._cached.forget()
        try:
            return await self._replicas.change(
                lambda replica, seconds: replica.update_weights(
                    path, adapter=adapter, unload=unload, teacher=teacher, timeout_seconds=seconds
                ),
                timeout_seconds=seconds,
            )
        finally:
            # Also of what was asked meanwhile.
            if self._cached is not None:
                self._cached.forget()

    async def close(self) -> None:
        """Cancels what is in flight and closes the connections. Closing twice is fine."""
        await self._replicas.close()
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

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

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        """Arguments as for `TeacherClient`. `on_retry` is called in the client's thread: it must not wait for it."""
        self._client = TeacherClient(address, **options)
        self._loop = asyncio.new_event_loop()
        self._is_closed = False
        self._closing = threading.Lock()
        """Held while a call is handed to the loop: none is once it ends, or it would be waited for in vain."""
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
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
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
        with self._closing:
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(call, self._loop)
        call.close()
        raise RuntimeError("the client is closed")

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
