"""Follows the requests of a server: what to ask next, given what was seen. Knows nothing of terminals."""

from __future__ import annotations

from typing import Protocol

from preceptor_client.errors import PreceptorError
from preceptor_client.http.answers import Record, Records, Stats

_BATCH = 100
_WAIT_SECONDS = 20.0
"""Longest wait of one call; the server allows 30."""
_STATUS_SECONDS = 1.0
"""The same where a status line is to be kept."""


class RecordingServer(Protocol):
    """The part of HttpTeacher that is needed here."""

    url: str

    async def requests(self, *, after: int, limit: int, wait_seconds: float = 0.0) -> Records:
        """What was scored after a request."""

    async def stats(self) -> Stats:
        """The queue and the throughput."""


class Shown(Protocol):
    """The part of Screen that is needed here."""

    @property
    def has_status(self) -> bool:
        """Whether `status` is shown."""

    def record(self, record: Record) -> None:
        """Shows a request."""

    def status(self, stats: Stats) -> None:
        """Shows the state of the server."""

    def say(self, message: str) -> None:
        """Shows a message."""

    def answered(self) -> None:
        """The server has answered, perhaps again."""


class NotRecordingError(PreceptorError):
    """The server keeps no requests; the message says how it would."""


async def follow(server: RecordingServer, screen: Shown, *, num_last: int, goes_on: bool) -> None:
    """Shows the last requests and, where it goes on, each that ends from then on. Raises PreceptorError."""
    after = await _show_last(server, screen, num_last=num_last)
    wait_seconds = _STATUS_SECONDS if screen.has_status else _WAIT_SECONDS
    while goes_on:
        if screen.has_status:
            screen.status(await server.stats())
        page = await _ask(server, screen, after=after, limit=_BATCH, wait_seconds=wait_seconds)
        after = _show(page, screen, after=after)


async def _show_last(server: RecordingServer, screen: Shown, *, num_last: int) -> int:
    """Returns the number after which to go on."""
    newest = (await _ask(server, screen, after=0, limit=1)).last
    after = max(0, newest - num_last)
    while after < newest:
        page = await _ask(server, screen, after=after, limit=_BATCH)
        for record in page.records:
            screen.record(record)
        # Fewer are kept than were asked for: what is gone leaves no gap to speak of.
        after = page.records[-1].number if page.records else newest
    return after


def _show(page: Records, screen: Shown, *, after: int) -> int:
    """Shows a page of what came after a request; returns the number after which to go on."""
    if page.last < after:
        screen.say("the server was started again: its requests count from 1")
        return 0
    if not page.records:
        return after
    if num_missed := page.records[0].number - after - 1:
        screen.say(f"{num_missed} request(s) ended meanwhile that the server no longer keeps: raise its http.record")
    for record in page.records:
        screen.record(record)
    return page.records[-1].number


async def _ask(server: RecordingServer, screen: Shown, *, after: int, limit: int, wait_seconds: float = 0.0) -> Records:
    page = await server.requests(after=after, limit=limit, wait_seconds=wait_seconds)
    screen.answered()
    if not page.is_recording:
        raise NotRecordingError(
            f"the server at {server.url} records no requests: start it with --http.record 100, which keeps that many, "
            "prompts included, in its memory"
        )
    return page
