"""uvicorn's HTTP protocol, which also ends a connection whose request line and headers do not come in time, one
whose caller has its answer and goes on sending the body, and one whose caller does not take its answer."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def timed_head(seconds: float, *, answer_seconds: float) -> type[H11Protocol]:
    """The protocol with these limits, for `uvicorn.Config(http=...)`. The first holds for connections that send nothing
    too, the second while more is to be sent than fits into the kernel's buffer."""

    class TimedHead(H11Protocol):
        """One connection."""

        _timer: asyncio.TimerHandle | None = None
        _answer_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:  # Any: as uvicorn types it in each release
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            # Aborted: to close it, what is left would have to be sent first.
            self._answer_timer = self.loop.call_later(answer_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_answer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            self._forget_answer()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Waits for the rest of a head, or of a body that nobody reads any more; and not while a request is
            answered or its body comes."""
            is_answered = self.cycle is not None and self.cycle.response_complete
            is_surplus = is_answered and self.conn.their_state is h11.SEND_BODY
            if self.conn.their_state is not h11.IDLE and not is_surplus:
                self._forget()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _forget_answer(self) -> None:
            if self._answer_timer is not None:
                self._answer_timer.cancel()
                self._answer_timer = None

    return TimedHead
