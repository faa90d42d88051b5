"""Asks a teacher about one response over gRPC, where the text is encoded here: the teacher hands over its tokenizer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from preceptor.wire import LogprobDtype, SegmentationPolicy

from preceptor_client.commands.score_settings import ScoreSettings
from preceptor_client.commands.score_view import Opinion
from preceptor_client.errors import InvalidRequestError
from preceptor_client.teacher import TeacherClient
from preceptor_client.types import Prompt, ServerInfo, TeacherInfo, Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


async def ask(settings: ScoreSettings) -> Opinion:
    """Raises PreceptorError, ValueError for an address without a port, ImportError without a tokenizer library."""
    async with TeacherClient(settings.address, timeout_seconds=settings.timeout_seconds, **settings.access()) as client:
        teacher = pick_teacher(await client.info(include_tokenizer=True), name=settings.teacher)
        tokenizer = load_tokenizer(teacher)
        response_ids = tokenizer.encode(settings.response, add_special_tokens=False).ids
        scores = await client.score(
            _prompt(settings),
            [response_ids],
            top_k=settings.top_k,
            temperature=settings.temperature,
            teacher=teacher.name,
            adapter=settings.adapter,
            logprob_dtype=LogprobDtype.F32,
            segmentation=SegmentationPolicy[settings.segmentation.upper()] if settings.segmentation else None,
        )
    shown_text = partial(token_text, tokenizer=tokenizer)
    return Opinion(scores=scores, teacher=teacher, response_ids=response_ids, shown_text=shown_text)


def pick_teacher(info: ServerInfo, *, name: str) -> TeacherInfo:
    """The teacher of that name, or the only one. Raises InvalidRequestError, listing the names."""
    matching = [teacher for teacher in info.teachers if name in ("", teacher.name)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(teacher.name for teacher in info.teachers)
    wrong = f"there is no teacher {name!r} here" if name else "the server hosts several teachers"
    raise InvalidRequestError(f"{wrong}: choose --teacher from {names}", field="teacher")


def load_tokenizer(teacher: TeacherInfo) -> Tokenizer:
    """The teacher's tokenizer, from the tokenizer.json that it handed over."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(
            "the package tokenizers is missing: run `pip install 'preceptor[train]'`, or use --http, which needs none"
        ) from error
    if not teacher.tokenizer_json:
        raise ValueError(f"teacher {teacher.name!r} hands over no tokenizer: text cannot be scored against it")
    return Tokenizer.from_str(teacher.tokenizer_json)


def _prompt(settings: ScoreSettings) -> Prompt:
    return settings.as_chat() if settings.chat else Text(settings.prompt)


def token_text(token: int, *, tokenizer: Tokenizer) -> str:
    """A token as its text in quotes, so that spaces and newlines show; a piece of a character by its own name."""
    name = tokenizer.id_to_token(token)
    if name is None:
        return f"<{token}>"
    text = tokenizer.decode([token], skip_special_tokens=False)
    if not text or _REPLACEMENT_CHARACTER in text:
        return f"<{name}>"
    # SentencePiece drops the space in front of what it takes for the start of a text.
    return repr(f" {text}" if name.startswith(_SENTENCEPIECE_SPACE) and not text.startswith(" ") else text)
