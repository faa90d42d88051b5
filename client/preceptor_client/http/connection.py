"""The HTTP side of one teacher server: asks, repeats what may pass, within a deadline. Needs the package httpx."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import TypeAdapter, ValidationError

from preceptor_client.access import Access, is_loopback
from preceptor_client.errors import CorruptAnswerError, PreceptorError, TeacherUnavailableError
from preceptor_client.http.answers import Info, Records, Stats, Topk
from preceptor_client.http.problems import NO_ANSWER, Problem, exception_for, read_problem
from preceptor_client.retry import RetryEvent, RetryPolicy
from preceptor_client.tls import ssl_context
from preceptor_client.url import checked_url

CONNECT_SECONDS = 5.0
_DEFAULT_RETRY = RetryPolicy()
_NO_ACCESS = Access()

AnswerT = TypeVar("AnswerT")
Json = Mapping[str, Any]  # Any: the leaves are whatever JSON holds


class HttpTeacher:
    """One server, from inside an event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float,
        retry: RetryPolicy = _DEFAULT_RETRY,
        on_retry: Callable[[RetryEvent], None] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        access: Access = _NO_ACCESS,
    ) -> None:
        """`timeout_seconds` covers all attempts of a call. `transport` stands in for the network, in tests. Raises
        ValueError where the key of `access` would travel to another machine in plain text."""
        self.url = checked_url(url)
        self._timeout_seconds = timeout_seconds
        self._retry = retry
        self._on_retry = on_retry
        parts = urlsplit(self.url)
        access.check(self.url, host=parts.hostname or "", is_secure=parts.scheme == "https")
        self._access = access
        # How long a whole attempt may take is granted by `_attempt`.
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=timeout,
            transport=transport,
            verify=ssl_context(ca=access.ca, cert=access.cert),
            # A proxy of the environment is for other machines: it would see the key, and ask a server of its own.
            trust_env=not is_loopback(parts.hostname or ""),
        )

    async def info(self) -> Info:
        """What the server hosts."""
        return await self._ask("GET", "/v1/info", answer=Info)

    async def topk(self, body: Json) -> Topk:
        """What the teacher thinks of the responses of `body`."""
        return await self._ask("POST", "/v1/topk", answer=Topk, body=body)

    async def requests(self, *, after: int, limit: int, wait_seconds: float = 0.0) -> Records:
        """What was scored after the request of that number, oldest first; waits so long until there is one. A server
        that was away is not kept waiting for: it may count from 1 again, and then there is none for long."""
        query = {"after": after, "limit": limit}
        return await self._ask("GET", "/v1/requests", answer=Records, query=query, wait_seconds=wait_seconds)

    async def stats(self) -> Stats:
        """The queue and the throughput."""
        return await self._ask("GET", "/v1/stats", answer=Stats)

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        answer: type[AnswerT],
        body: Json | None = None,
        query: Mapping[str, float] | None = None,
        wait_seconds: float = 0.0,
    ) -> AnswerT:
        def request(attempt: int) -> httpx.Request:
            waiting = {"wait_seconds": wait_seconds} if wait_seconds and attempt == 1 else {}
            # The key of this very moment: it may have been replaced since the last attempt.
            headers = dict(self._access.authorization())
            params = {**(query or {}), **waiting}
            return self._client.build_request(method, path, json=body, params=params, headers=headers)

        content = await self._until_answered(request, timeout_seconds=self._timeout_seconds + wait_seconds)
        try:
            return TypeAdapter(answer).validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise CorruptAnswerError(
                f"teacher {self.url}{path} answered something else than docs/http.md says: {where} {first['msg']}"
            ) from error

    async def _until_answered(self, request: Callable[[int], httpx.Request], *, timeout_seconds: float) -> bytes:
        """`request` makes the one to send at an attempt, which counts from 1."""
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._attempt(request(attempt), seconds=timeout_seconds - (time.monotonic() - started))
            if isinstance(outcome, bytes):
                return outcome
            if not outcome.is_transient:
                raise exception_for(outcome, url=self.url)
            elapsed = time.monotonic() - started
            delay = self._retry.delay_seconds(attempt, at_least=outcome.retry_after_seconds)
            if elapsed + delay >= timeout_seconds:
                raise self._gave_up(outcome, attempts=attempt, elapsed=elapsed, timeout_seconds=timeout_seconds)
            self._tell(outcome, attempt=attempt, elapsed=elapsed, delay=delay)
            await asyncio.sleep(delay)

    async def _attempt(self, request: httpx.Request, *, seconds: float) -> bytes | Problem:
        """The answer's bytes, or why there are none."""
        try:
            async with asyncio.timeout(seconds):
                answer = await self._client.send(request)
        except TimeoutError:
            return Problem(status=NO_ANSWER, message=f"no answer in {seconds:.1f} s")
        except httpx.RequestError as error:
            return Problem(status=NO_ANSWER, message=f"no answer ({error or type(error).__name__})")
        return answer.content if answer.is_success else read_problem(answer.status_code, answer.content)

    def _gave_up(self, problem: Problem, *, attempts: int, elapsed: float, timeout_seconds: float) -> PreceptorError:
        return TeacherUnavailableError(
            f"teacher {self.url} gave no answer: waited {elapsed:.1f} s of at most {timeout_seconds:g} s, {attempts} "
            f"attempt(s), the last one failed with {problem}",
            code=problem.code,
            retry_after_seconds=problem.retry_after_seconds,
        )

    def _tell(self, problem: Problem, *, attempt: int, elapsed: float, delay: float) -> None:
        if self._on_retry is not None:
            event = RetryEvent(
                attempt=attempt,
                elapsed_seconds=elapsed,
                next_delay_seconds=delay,
                code=problem.code,
                message=str(problem),
                address=self.url,
            )
            self._on_retry(event)
