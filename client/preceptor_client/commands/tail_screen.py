"""Where `preceptor tail` writes: lines to stdout, a status line below them on a terminal, what is amiss to stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from preceptor_client.commands.output import complain
from preceptor_client.commands.tail_view import heading, json_line, record_line, status_line
from preceptor_client.http.answers import Record, Stats
from preceptor_client.retry import RetryEvent


class Screen:
    """Shows records and what else there is to say."""

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        """`console` stands in for stdout, in tests."""
        self._as_json = as_json
        self._console = console or Console()
        self._live: Live | None = None
        if self._console.is_terminal and not as_json:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._has_heading = False
        self._is_cut_off = False

    @property
    def has_status(self) -> bool:
        """Whether there is a line for the state of the server."""
        return self._live is not None

    def record(self, record: Record) -> None:
        """One line, at once."""
        if self._as_json:
            sys.stdout.write(json_line(record) + "\n")
            sys.stdout.flush()
            return
        if not self._has_heading:
            self._line(heading())
            self._has_heading = True
        self._line(record_line(record))

    def status(self, stats: Stats) -> None:
        """The state of the server, in place of the last one."""
        if self._live is not None:
            self._live.update(status_line(stats), refresh=True)

    def say(self, message: str) -> None:
        """Something that is no record: to stderr, or above the status line where there is one."""
        if self._live is not None:
            self._console.print(message, style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            complain(message)

    def no_answer(self, event: RetryEvent) -> None:
        """An attempt failed and another will follow; said once until the server answers again."""
        if not self._is_cut_off:
            self.say(f"{event.address}: {event.message}; asking again")
        self._is_cut_off = True
        if self._live is not None:
            waited = f"no answer for {event.elapsed_seconds:.0f} s, asking again in {event.next_delay_seconds:.1f} s"
            self._live.update(Text(waited, style="bold red"), refresh=True)

    def answered(self) -> None:
        """The server has answered, perhaps again."""
        if self._is_cut_off:
            self.say("the server answers again")
        self._is_cut_off = False

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self, line: Text) -> None:
        if self._console.is_terminal:
            # Cut at the edge, so that a request stays a line.
            self._console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)
        else:
            self._console.print(line, soft_wrap=True, highlight=False)
