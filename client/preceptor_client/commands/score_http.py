"""Asks a teacher about one response over HTTP, where the server encodes the text and the answer carries its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from preceptor_client.commands.http_access import open_http
from preceptor_client.commands.score_settings import ScoreSettings
from preceptor_client.commands.score_view import Opinion
from preceptor_client.errors import CorruptAnswerError
from preceptor_client.http.answers import HostedTeacher, Info, Topk
from preceptor_client.http.topk import scores_of
from preceptor_client.verify import verify_echo

_PIECES = re.compile(r"(<0x[0-9A-F]{2}>)+")


async def ask(settings: ScoreSettings) -> Opinion:
    """Raises PreceptorError, ImportError without the package httpx."""
    async with open_http(settings.http, access=settings.access(), timeout_seconds=settings.timeout_seconds) as client:
        answer = await client.topk(body_of(settings))
        teacher = _described(await client.info(), answer=answer)
    _verify_echoes(answer, settings=settings)
    return Opinion(
        scores=scores_of(answer),
        teacher=teacher,
        response_ids=answer.responses[0].ids,
        shown_text=partial(token_text, texts=answer.texts),
    )


def body_of(settings: ScoreSettings) -> dict[str, Any]:  # Any: the leaves are whatever JSON holds
    """The body of /v1/topk; what is left to the server is left out."""
    chosen = {"segmentation": settings.segmentation, "teacher": settings.teacher, "adapter": settings.adapter}
    return {
        "prompt": _chat_of(settings) if settings.chat else {"text": settings.prompt},
        "responses": [{"text": settings.response}],
        "top_k": settings.top_k,
        "temperature": settings.temperature,
        "logprob_dtype": "f32",
        **{name: value for name, value in chosen.items() if value},
    }


def _chat_of(settings: ScoreSettings) -> dict[str, Any]:  # Any: as above
    chat = settings.as_chat()
    given = {"tools": chat.tools, "chat_template_kwargs": chat.template_arguments}
    return {
        "messages": [{"role": message.role, "content": message.content} for message in chat.messages],
        **{name: value for name, value in given.items() if value},
    }


def token_text(token: int, *, texts: Mapping[str, str]) -> str:
    """A token as its text in quotes, so that spaces and newlines show; a piece of a character by its bytes."""
    text = texts.get(str(token))
    if not text:
        return f"<{token}>"
    return text if _PIECES.fullmatch(text) else repr(text)


def _described(info: Info, *, answer: Topk) -> HostedTeacher:
    for teacher in info.teachers:
        if teacher.name == answer.teacher:
            return teacher
    raise CorruptAnswerError(
        f"teacher {answer.teacher!r} answered, which the server does not name among those it hosts"
    )


def _verify_echoes(answer: Topk, *, settings: ScoreSettings) -> None:
    verify_echo("top_k", sent=settings.top_k, answered=answer.top_k)
    verify_echo("temperature", sent=settings.temperature, answered=answer.temperature)
    verify_echo("adapter", sent=settings.adapter, answered=answer.adapter)
    verify_echo("responses (their number)", sent=1, answered=len(answer.responses))
    if settings.segmentation:
        verify_echo("segmentation", sent=settings.segmentation, answered=answer.segmentation)
