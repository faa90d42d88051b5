"""What `preceptor tail` asks next, given what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from preceptor_client.commands.tail_follow import NotRecordingError, follow
from preceptor_client.errors import PreceptorError
from preceptor_client.http.answers import Record, Records, Stats

from tests.unit.client.http.scripted_http import STATS, record


class OverError(PreceptorError):
    """The script is over."""


@dataclass
class Server:
    """Holds records of which it keeps the newest; each call of the script adds some before it answers."""

    numbers: list[int]
    script: list[Sequence[int]] = field(default_factory=list)
    """What ends during each call after the first ones; a smaller number than the last: the server was started again."""
    keeps: int = 1000
    is_recording: bool = True
    asked: list[tuple[int, int, float]] = field(default_factory=list)
    url: str = "http://teacher:8080"

    async def requests(self, *, after: int, limit: int, wait_seconds: float = 0.0) -> Records:
        self.asked.append((after, limit, wait_seconds))
        if wait_seconds:
            if not self.script:
                raise OverError
            self._end(self.script.pop(0))
        kept = self.numbers[-self.keeps :]
        new = [number for number in kept if number > after][:limit]
        records = tuple(Record(**record(number)) for number in new)
        return Records(records=records, last=kept[-1] if kept else 0, is_recording=self.is_recording)

    async def stats(self) -> Stats:
        return Stats(**STATS)  # type: ignore[arg-type]  # as in the answer

    def _end(self, numbers: Sequence[int]) -> None:
        if numbers and self.numbers and numbers[0] <= self.numbers[-1]:
            self.numbers = []
        self.numbers += numbers


@dataclass
class Screen:
    """Keeps what it is to show."""

    has_status: bool = False
    shown: list[int | str] = field(default_factory=list)
    num_stats: int = 0
    num_answers: int = 0

    def record(self, record: Record) -> None:
        self.shown.append(record.number)

    def status(self, stats: Stats) -> None:
        assert stats.queue_groups == 3
        self.num_stats += 1

    def say(self, message: str) -> None:
        self.shown.append(message)

    def answered(self) -> None:
        self.num_answers += 1


async def followed(server: Server, *, num_last: int = 3, screen: Screen | None = None) -> list[int | str]:
    screen = screen or Screen()
    with pytest.raises(OverError):
        await follow(server, screen, num_last=num_last, goes_on=True)
    return screen.shown


async def test_without_following_the_last_ones_are_shown_and_nothing_waits() -> None:
    server, screen = Server(list(range(1, 11))), Screen()
    await follow(server, screen, num_last=4, goes_on=False)
    assert screen.shown == [7, 8, 9, 10]
    assert all(wait_seconds == 0 for _, _, wait_seconds in server.asked)


@pytest.mark.parametrize(("num_last", "expected"), [(0, []), (2, [1, 2]), (5, [1, 2])])
async def test_as_many_as_there_are_of_those_asked_for(num_last: int, expected: list[int]) -> None:
    server, screen = Server([1, 2]), Screen()
    await follow(server, screen, num_last=num_last, goes_on=False)
    assert screen.shown == expected


async def test_more_than_one_page_of_last_ones_is_fetched_page_by_page() -> None:
    server, screen = Server(list(range(1, 301))), Screen()
    await follow(server, screen, num_last=250, goes_on=False)
    assert screen.shown == list(range(51, 301))
    assert [after for after, _, _ in server.asked] == [0, 50, 150, 250]


async def test_those_no_longer_kept_at_the_start_are_no_gap_to_speak_of() -> None:
    assert await followed(Server(list(range(1, 11)), keeps=2), num_last=5) == [9, 10]


async def test_each_that_ends_is_shown_once_in_order() -> None:
    server = Server([1, 2], script=[[3], [], [4, 5], []])
    assert await followed(server) == [1, 2, 3, 4, 5]
    assert [after for after, _, wait_seconds in server.asked if wait_seconds] == [2, 3, 3, 5, 5]


async def test_following_an_idle_server_begins_with_its_first_request() -> None:
    assert await followed(Server([], script=[[], [1]])) == [1]


async def test_those_that_came_too_fast_are_counted() -> None:
    server = Server([1], script=[[2, 3, 4, 5, 6]], keeps=2)
    told = "3 request(s) ended meanwhile that the server no longer keeps: raise its http.record"
    assert await followed(server) == [1, told, 5, 6]


async def test_a_server_that_was_started_again_is_followed_from_its_first_request() -> None:
    server = Server([7, 8], script=[[1, 2], [3]])
    told = "the server was started again: its requests count from 1"
    assert await followed(server) == [7, 8, told, 1, 2, 3]


async def test_a_status_line_is_kept_with_short_waits() -> None:
    server, screen = Server([1], script=[[2], []]), Screen(has_status=True)
    assert await followed(server, screen=screen) == [1, 2]
    assert screen.num_stats == 3
    assert {wait_seconds for _, _, wait_seconds in server.asked} == {0.0, 1.0}
    assert screen.num_answers == len(server.asked) - 1


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_server_that_does_not_record_says_how_it_would(goes_on: bool) -> None:
    server = Server([], is_recording=False)
    with pytest.raises(
        NotRecordingError, match=r"the server at http://teacher:8080 records no requests.*--http\.record 100"
    ):
        await follow(server, Screen(), num_last=3, goes_on=goes_on)
