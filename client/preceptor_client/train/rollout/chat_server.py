"""Asks a server with OpenAI's API, such as `vllm serve`, for text. Knows nothing of episodes. Needs the package httpx.

What passes (nobody listens, 429, 5xx) is asked again until the deadline. Whatever else goes wrong is told at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from preceptor.json_values import JsonObject, object_text
from pydantic import JsonValue

from preceptor_client.errors import TeacherUnavailableError
from preceptor_client.retry import RetryPolicy
from preceptor_client.train.data.examples import ExamplePrompt
from preceptor_client.train.data.excerpts import excerpt, message_of
from preceptor_client.train.errors import InvalidEpisodeError, InvalidPartError
from preceptor_client.types import ChatMessage
from preceptor_client.url import checked_url

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 5.0
MAX_ANSWER_BYTES = 16 << 20
"""An answer that is longer is not held in memory."""
_MAX_PROBLEM_BYTES = 64 << 10
_WRONG_SETTINGS = {401: "the key", 403: "the key", 404: "base_url and model"}
"""Statuses that tell of the settings, and which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the server wrote."""

    text: str
    finish_reason: str
    """As the server gives it: "stop", "length", or another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passing:
    """A failure that may pass."""

    why: str
    retry_after_seconds: float = 0.0
    is_late: bool = False
    """The deadline cut it. Where the first attempt had all the time, it is the question that takes too long; a later
    one had what others left of it."""


class ChatServer:
    """One server and one model of it. Holds no connection between two questions: any thread may ask."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str,
        timeout_seconds: float,
        api_key_variable: str = "",
        retry: RetryPolicy = RetryPolicy(initial_seconds=0.5, max_seconds=10.0),  # noqa: B008  frozen
    ) -> None:
        """`base_url` with or without /v1; `timeout_seconds` covers all attempts of a question; the key, where one is
        needed, stands in the environment variable of that name. Raises ValueError."""
        if find_spec("httpx") is None:
            raise ValueError("asking a server over HTTP needs the package httpx: pip install 'preceptor[http]'")
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds={timeout_seconds} must be above 0")
        if not model:
            raise ValueError("model is empty: name the model that the server hosts")
        self._url = checked_url(base_url).removesuffix("/v1")
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._retry = retry
        self._headers = _headers(api_key_variable)
        # Reading the certificates of this machine takes longer than many an answer.
        self._certificates = ssl.create_default_context() if self._url.startswith("https") else False

    async def complete(self, prompt: ExamplePrompt, *, options: Mapping[str, JsonValue]) -> Completion:
        """Messages go to /v1/chat/completions, a text to /v1/completions, with `options` beside them.

        Raises TeacherUnavailableError where the server could not be reached until the deadline, InvalidPartError where
        the settings are wrong, InvalidEpisodeError where this question is refused or its answer cannot be used."""
        import httpx

        asked: dict[str, object] = {"model": self._model, **options}
        if isinstance(prompt, str):
            path, asked["prompt"] = "/v1/completions", prompt
        else:
            path, asked["messages"] = "/v1/chat/completions", [_message(message) for message in prompt]
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(headers=self._headers, timeout=timeout, verify=self._certificates) as client:
            content = await self._until_answered(client, self._url + path, asked)
        return _completion(content, url=self._url)

    async def _until_answered(self, client: httpx.AsyncClient, url: str, asked: Mapping[str, object]) -> bytes:
        started = time.monotonic()
        attempt, why = 0, ""
        while True:
            attempt += 1
            outcome = await self._attempt(
                client, url, asked, seconds=self._timeout_seconds + started - time.monotonic()
            )
            if isinstance(outcome, bytes):
                return outcome
            if outcome.is_late and attempt == 1:
                raise InvalidEpisodeError(f"{self._url} gave no answer in {self._timeout_seconds:g} s")
            why = f"{why}, then {outcome.why}" if outcome.is_late else outcome.why
            elapsed = time.monotonic() - started
            delay = self._retry.delay_seconds(attempt, at_least=outcome.retry_after_seconds)
            if elapsed + delay >= self._timeout_seconds:
                raise TeacherUnavailableError(
                    f"{self._url} gave no answer: waited {elapsed:.1f} s of at most {self._timeout_seconds:g} s, "
                    f"{attempt} attempt(s), the last one failed with {why}"
                )
            await asyncio.sleep(delay)

    async def _attempt(
        self, client: httpx.AsyncClient, url: str, asked: Mapping[str, object], *, seconds: float
    ) -> bytes | _Passing:
        import httpx

        try:
            async with asyncio.timeout(seconds), client.stream("POST", url, json=asked) as answer:
                limit = MAX_ANSWER_BYTES if answer.is_success else _MAX_PROBLEM_BYTES
                content = await _read(answer, limit=limit)
        except TimeoutError:
            return _Passing(why=f"no answer in {seconds:.1f} s", is_late=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return _Passing(why=message_of(error))
        except httpx.HTTPError as error:
            raise InvalidEpisodeError(f"the answer of {self._url} broke off: {message_of(error)}") from error
        status = answer.status_code
        if answer.is_success:
            return content
        why = f"status {status}: {excerpt(content.decode('utf-8', 'replace'))}"
        if status == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            return _Passing(why=why, retry_after_seconds=_retry_after(answer.headers.get("retry-after", "")))
        if status in _WRONG_SETTINGS:
            raise InvalidPartError(f"{self._url} refuses model {self._model!r}, {why}: check {_WRONG_SETTINGS[status]}")
        raise InvalidEpisodeError(f"{self._url} refuses the question, {why}")


def _message(message: ChatMessage) -> JsonObject:
    """As OpenAI's API has it: the arguments of a call are a text there."""
    asked = message.as_template_message()
    if message.tool_calls:
        asked["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": object_text(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return asked


def _headers(api_key_variable: str) -> dict[str, str]:
    if not api_key_variable:
        return {}
    key = os.environ.get(api_key_variable, "")
    if not key or not key.isascii() or not key.isprintable():
        raise ValueError(
            f"api_key_variable={api_key_variable!r}: the environment has no such variable, or it holds no key: export "
            "it, or leave the option out"
        )
    return {"Authorization": f"Bearer {key}"}


async def _read(answer: httpx.Response, *, limit: int) -> bytes:
    content = bytearray()
    async for data in answer.aiter_bytes():
        content += data
        if len(content) > limit and answer.is_success:
            raise InvalidEpisodeError(f"the answer is longer than {limit >> 20} MiB: lower max_new_tokens")
        if len(content) > limit:
            break
    return bytes(content)


def _retry_after(value: str) -> float:
    """Seconds; a date is not read, and the ordinary wait stands."""
    return float(value) if value.isdigit() and len(value) < 6 else 0.0


def _completion(content: bytes, *, url: str) -> Completion:
    try:
        answer: Any = json.loads(content)  # Any: whatever the server sent
        (choice,) = answer["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        finish_reason = choice["finish_reason"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidEpisodeError(
            f"{url} answered something else than OpenAI's API: {message_of(error)} in "
            f"{excerpt(content.decode('utf-8', 'replace'))}"
        ) from error
    if not isinstance(text, str) or not isinstance(finish_reason, str):
        raise InvalidEpisodeError(
            f"{url} wrote no text: content {excerpt(text)}, finish_reason {excerpt(finish_reason)}"
        )
    return Completion(text=text, finish_reason=finish_reason)
