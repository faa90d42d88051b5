"""`preceptor score`: shows what the teacher thinks of one response, token by token. Knows nothing of training."""

from __future__ import annotations

import asyncio

from preceptor.settings import InvalidSettingsError, load_settings
from rich.console import Console

from preceptor_client.commands import score_grpc, score_http
from preceptor_client.commands.output import FAILED, INVALID_SETTINGS, complain
from preceptor_client.commands.score_settings import ScoreSettings
from preceptor_client.commands.score_view import show_opinion
from preceptor_client.errors import PreceptorError

PROGRAM = "preceptor score"


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    try:
        settings = load_settings(ScoreSettings, arguments, program=PROGRAM)
    except InvalidSettingsError as error:
        complain(str(error))
        return INVALID_SETTINGS
    ask = score_http.ask if settings.http else score_grpc.ask
    try:
        opinion = asyncio.run(ask(settings))
    # ValueError: an address without a port; ImportError: no tokenizer library, or no httpx.
    except (PreceptorError, ValueError, ImportError) as error:
        complain(f"{PROGRAM}: {error}")
        return FAILED
    show_opinion(opinion, console=Console(), num_likeliest=settings.show)
    return 0
