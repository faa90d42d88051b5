"""`preceptor score`: shows what the teacher thinks of one response, token by token. Knows nothing of training."""

# N = scored positions, K = support size

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from preceptor.settings import InvalidSettingsError, load_settings
from preceptor.wire import LogprobDtype, PositionStatus, SegmentationPolicy
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from preceptor_client.commands.output import FAILED, INVALID_SETTINGS, complain
from preceptor_client.commands.status_words import WHY_NO_SCORE
from preceptor_client.errors import InvalidRequestError, PreceptorError
from preceptor_client.teacher import TeacherClient
from preceptor_client.types import Chat, ChatMessage, GroupScores, Prompt, ServerInfo, TeacherInfo, Text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PROGRAM = "preceptor score"
_REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"
_SENTENCEPIECE_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class ScoreSettings(BaseSettings):
    """Asks a teacher what it thinks of one response."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRECEPTOR_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
    )

    address: str = Field(min_length=3)
    """The teacher server, as HOST:PORT; several with commas between: replicas of one teacher."""
    response: str = Field(min_length=1)
    """The text to score. It is encoded on its own: begin it with a space where the text would have one."""
    prompt: str = ""
    """The text before the response, encoded by the teacher's tokenizer. Either this or --chat."""
    chat: str = ""
    """A user's message, rendered with the teacher's chat template. Either this or --prompt."""
    top_k: int = Field(8, ge=1, le=1024)
    """Size of the teacher's support per position."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The teacher's logits are divided by it before the softmax."""
    segmentation: Literal["as_is", "mask", "canonical"] | None = None
    """Where the teacher would cut the text otherwise: score it as_is, mask the position, or score the teacher's own
    (canonical) tokens. Default: the server's choice."""
    teacher: str = ""
    """Name of the teacher; may be left out where the server hosts one."""
    adapter: str = ""
    """Name of one of its adapters; empty asks the teacher as it is."""
    show: int = Field(5, ge=0, le=64)
    """How many of the teacher's likeliest tokens to show per position."""
    timeout_seconds: float = Field(30.0, gt=0, le=3600)
    """How long to wait for the teacher, retries included."""

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if bool(self.prompt) == bool(self.chat):
            raise ValueError("give either --prompt or --chat")
        return self


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    try:
        settings = load_settings(ScoreSettings, arguments, program=PROGRAM)
    except InvalidSettingsError as error:
        complain(str(error))
        return INVALID_SETTINGS
    try:
        asyncio.run(_score(settings))
    # ValueError: an address without a port; ImportError: no tokenizer library.
    except (PreceptorError, ValueError, ImportError) as error:
        complain(f"{PROGRAM}: {error}")
        return FAILED
    return 0


async def _score(settings: ScoreSettings) -> None:
    async with TeacherClient(settings.address, timeout_seconds=settings.timeout_seconds) as client:
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
    console = Console()
    console.print(headline(scores, teacher=teacher), markup=False, highlight=False)
    console.print(score_table(scores, response_ids=response_ids, tokenizer=tokenizer, show=settings.show))


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
        raise ImportError("the package tokenizers is missing: run `pip install 'preceptor[train]'`") from error
    if not teacher.tokenizer_json:
        raise ValueError(f"teacher {teacher.name!r} hands over no tokenizer: text cannot be scored against it")
    return Tokenizer.from_str(teacher.tokenizer_json)


def _prompt(settings: ScoreSettings) -> Prompt:
    if settings.chat:
        return Chat((ChatMessage("user", settings.chat),))
    return Text(settings.prompt)


def headline(scores: GroupScores, *, teacher: TeacherInfo) -> str:
    """Who answered, on what, and where the time went."""
    timings = scores.timings
    return (
        f"teacher {scores.teacher} ({teacher.model}, {teacher.engine}, {teacher.dtype} on {teacher.device}), revision "
        f"{scores.revision}, segmentation {scores.segmentation.name.lower()}, prompt of {len(scores.prompt_ids)} "
        f"tokens, queue {timings.queue_ms:.1f} ms, "
        f"forward {timings.forward_ms:.1f} ms, total {timings.total_ms:.1f} ms"
    )


def score_table(scores: GroupScores, *, response_ids: list[int], tokenizer: Tokenizer, show: int) -> Table:
    """One row per response token: what the teacher gave it, and what it would have said."""
    response = scores.responses[0]
    table = Table()
    for heading in ("position", "token", "logprob", "probability", "rank", "support mass", "entropy"):
        table.add_column(heading, justify="left" if heading == "token" else "right")
    table.add_column("the teacher would say")
    row_of_position = {int(position): row for row, position in enumerate(response.positions_N)}
    for position, token in enumerate(response_ids):
        cell = Cell(token_text(token, tokenizer=tokenizer))
        row = row_of_position.get(position)
        if row is None:
            why = WHY_NO_SCORE[PositionStatus(response.status_T[position])]
            table.add_row(str(position), cell, *["-"] * 5, Cell(f"no score: {why}"))
            continue
        logprob = float(response.sampled_logprobs_N[row])
        # What is -inf fills the row up and is no part of the support.
        num_inside = int(np.isfinite(response.support_logprobs_NK[row]).sum())
        ids_K, logprobs_K = response.support_ids_NK[row][:num_inside], response.support_logprobs_NK[row][:num_inside]
        ranks = np.flatnonzero(ids_K == token)
        likeliest = zip(ids_K[:show], logprobs_K[:show], strict=True)
        table.add_row(
            str(position),
            cell,
            f"{logprob:.3f}",
            f"{math.exp(logprob):.4f}",
            str(ranks[0] + 1) if ranks.size else "-",
            f"{1.0 - math.exp(float(response.log_tail_mass_N[row])):.4f}",
            "-" if response.entropies_N is None else f"{float(response.entropies_N[row]):.3f}",
            Cell("  ".join(f"{token_text(int(id_), tokenizer=tokenizer)} {math.exp(p):.3f}" for id_, p in likeliest)),
        )
    return table


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
