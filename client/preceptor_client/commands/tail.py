"""`preceptor tail`: shows the requests of a running teacher server as they end. Knows nothing of HTTP's details."""

from __future__ import annotations

import asyncio
import os
import sys

from preceptor.settings import InvalidSettingsError, load_settings

from preceptor_client.commands.http_access import open_http
from preceptor_client.commands.output import FAILED, INTERRUPTED, INVALID_SETTINGS, complain
from preceptor_client.commands.tail_follow import follow
from preceptor_client.commands.tail_screen import Screen
from preceptor_client.commands.tail_settings import TailSettings
from preceptor_client.errors import PreceptorError

PROGRAM = "preceptor tail"


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status: 0 unless it follows, which only Ctrl-C or an error ends."""
    try:
        settings = load_settings(TailSettings, arguments, program=PROGRAM)
    except InvalidSettingsError as error:
        complain(str(error))
        return INVALID_SETTINGS
    try:
        asyncio.run(_tail(settings))
    except BrokenPipeError:
        # Whoever read stdout, such as `head`, has seen enough. Nothing may be left to flush there at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    # ValueError: a key or a certificate that cannot be used.
    except (PreceptorError, ImportError, ValueError) as error:
        complain(f"{PROGRAM}: {error}")
        return FAILED
    except KeyboardInterrupt:
        # How one ends it: no complaint.
        return INTERRUPTED
    return 0


async def _tail(settings: TailSettings) -> None:
    screen = Screen(as_json=settings.as_json)
    async with open_http(
        settings.url, access=settings.access(), timeout_seconds=settings.timeout_seconds, on_retry=screen.no_answer
    ) as server:
        with screen:
            await follow(server, screen, num_last=settings.last, goes_on=settings.follow)
