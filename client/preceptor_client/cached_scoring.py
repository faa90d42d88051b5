"""Answers groups from a score cache, and what a run asks besides: what the server hosts, and registrations.

The cache is keyed by the teacher's revision. What the server says of itself is asked again once it is INFO_SECONDS old,
on a new connection, after this client's own update of weights, and when an answer carries another revision. Knows
nothing of replicas.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from preceptor_client import messages
from preceptor_client.errors import CorruptAnswerError, NotInCacheError, TeacherUnavailableError
from preceptor_client.request import GroupRequest, RegistrationRequest
from preceptor_client.score_cache import ScoreCache
from preceptor_client.score_key import TeacherIdentity, identity_of, score_key
from preceptor_client.types import Chat, GroupScores, Registration, ServerInfo, Text

INFO_SECONDS = 30.0
_INFO = TypeAdapter(ServerInfo)
_REGISTRATION = TypeAdapter(Registration)

FactT = TypeVar("FactT")
AskInfo = Callable[[float], Awaitable[ServerInfo]]
"""Asks a server what it hosts, within so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the answer to one group belongs."""

    key: bytes
    revision: str
    """Of the teacher, as its server said last."""


class CachedScoring:
    """The part of one client that knows its cache."""

    def __init__(
        self, cache: ScoreCache, *, addresses: Sequence[str], ask_info: AskInfo, num_losses: Callable[[], int]
    ) -> None:
        self._cache = cache
        self._addresses = ",".join(sorted(addresses))
        self._ask_info = ask_info
        self._num_losses = num_losses
        self._info: ServerInfo | None = None
        self._info_at = 0.0
        self._losses_at_info = 0
        self._num_forgotten = 0
        self._asking = asyncio.Lock()

    @property
    def is_offline(self) -> bool:
        """Whether no server may be asked."""
        return self._cache.mode == "offline"

    async def find(self, group: GroupRequest, *, timeout_seconds: float) -> tuple[Place | None, GroupScores | None]:
        """Where the group's answer belongs, None where that cannot be known, and the answer if it is there. Offline it
        is there, or NotInCacheError is raised."""
        identity = await self._identity(group, timeout_seconds=timeout_seconds)
        if identity is None:
            if self.is_offline:
                raise self._lacks(f"teacher {group.teacher!r} with adapter {group.adapter!r} at {self._addresses}")
            return None, None
        place = Place(key=await asyncio.to_thread(score_key, group, identity), revision=identity.revision)
        if self._cache.mode == "refresh":
            return place, None
        data = await self._cache.get(place.key)
        if data is not None:
            try:
                scores = messages.decode_stored(data, group=group)
            except CorruptAnswerError as error:
                if self.is_offline:
                    raise
                await self._cache.discard(place.key)
                self._cache.warn(error, consequence="it is asked for again")
            else:
                return place, scores
        if self.is_offline:
            raise self._lacks(_words(group, identity))
        return place, None

    async def keep(self, place: Place, data: bytes, scores: GroupScores) -> None:
        """Stores a verified answer, unless the teacher has taken other weights since its place was found."""
        if scores.revision == place.revision:
            await self._cache.put(place.key, data)
        else:
            self.forget()

    def forget(self) -> None:
        """The teacher may have taken other weights: it is asked before the next group."""
        self._info = None
        self._num_forgotten += 1

    async def saw(self, info: ServerInfo, *, include_tokenizer: bool) -> None:
        """A server said this of itself."""
        self._info, self._info_at = info, time.monotonic()
        await self._cache.put_fact(self._info_name(include_tokenizer=include_tokenizer), _INFO.dump_json(info))
        if include_tokenizer:
            bare = replace(info, teachers=tuple(replace(one, tokenizer_json="") for one in info.teachers))
            await self._cache.put_fact(self._info_name(include_tokenizer=False), _INFO.dump_json(bare))

    async def stored_info(self, *, include_tokenizer: bool) -> ServerInfo:
        """What a server said of itself. Raises NotInCacheError."""
        name = self._info_name(include_tokenizer=include_tokenizer)
        what = "what the server hosts, with its tokenizers" if include_tokenizer else "what the server hosts"
        return await self._fact(name, _INFO, what=f"{what}, at {self._addresses}")

    async def saw_registration(self, request: RegistrationRequest, registration: Registration) -> None:
        """A server took this tokenizer."""
        await self._cache.put_fact(self._registration_name(request), _REGISTRATION.dump_json(registration))

    async def stored_registration(self, request: RegistrationRequest) -> Registration:
        """What a server made of this tokenizer. Raises NotInCacheError."""
        return await self._fact(
            self._registration_name(request), _REGISTRATION, what=f"this tokenizer's registration at {self._addresses}"
        )

    async def _identity(self, group: GroupRequest, *, timeout_seconds: float) -> TeacherIdentity | None:
        deadline = time.monotonic() + timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._asking.acquire()
        except TimeoutError as error:
            raise TeacherUnavailableError(f"{self._addresses} did not say in time what is hosted") from error
        try:
            info = await self._current_info(deadline)
            return identity_of(info, teacher=group.teacher, adapter=group.adapter)
        finally:
            self._asking.release()

    async def _current_info(self, deadline: float) -> ServerInfo:
        if self.is_offline:
            self._info = self._info or await self.stored_info(include_tokenizer=False)
        while self._info is None or (not self.is_offline and self._is_old()):
            num_forgotten, num_losses = self._num_forgotten, self._num_losses()
            info = await self._ask_info(max(0.0, deadline - time.monotonic()))
            # What was said before an update ended is forgotten with it.
            if num_forgotten == self._num_forgotten:
                self._losses_at_info = num_losses
                await self.saw(info, include_tokenizer=False)
                return info
        return self._info

    def _is_old(self) -> bool:
        return time.monotonic() - self._info_at > INFO_SECONDS or self._num_losses() != self._losses_at_info

    async def _fact(self, name: str, kind: TypeAdapter[FactT], *, what: str) -> FactT:
        data = await self._cache.get_fact(name)
        if data is None:
            raise await self._lacks_fact(what)
        try:
            return kind.validate_json(data)
        except ValidationError as error:
            raise await self._lacks_fact(f"{what} (it was stored by another version of this client)") from error

    async def _lacks_fact(self, what: str) -> NotInCacheError:
        names = await self._cache.fact_names("info ")
        known = sorted({name.split(" ", 2)[2] for name in names}) or ["none"]
        return self._lacks(f"{what}; addresses that it knows: {'; '.join(known)}")

    def _lacks(self, what: str) -> NotInCacheError:
        return NotInCacheError(
            f'offline: score cache {self._cache.path} lacks {what}. Fill it by a run with mode "use" and the same '
            "settings, seed and data"
        )

    def _info_name(self, *, include_tokenizer: bool) -> str:
        return f"info {'full' if include_tokenizer else 'bare'} {self._addresses}"

    def _registration_name(self, request: RegistrationRequest) -> str:
        digest = hashlib.sha256(TypeAdapter(RegistrationRequest).dump_json(request)).hexdigest()
        return f"registration {digest} {self._addresses}"


def _words(group: GroupRequest, identity: TeacherIdentity) -> str:
    """A group as its caller knows it, without its text."""
    match group.prompt:
        case Text(text=text):
            prompt = f"a text of {len(text)} characters"
        case Chat(messages=turns):
            prompt = f"a chat of {len(turns)} messages"
        case _:
            assert group.prompt_ids_P is not None, "a prompt of ids was checked into an array"
            prompt = f"{len(group.prompt_ids_P)} ids"
    lengths = ", ".join(str(len(ids_T)) for ids_T in group.responses_T[:8])
    more = ", ..." if len(group.responses_T) > 8 else ""
    return (
        f"group {group.request_id}: prompt {prompt}, {len(group.responses_T)} response(s) of {lengths}{more} tokens, "
        f"top_k={group.top_k}, temperature={group.temperature:g}, teacher {identity.teacher!r} at revision "
        f"{identity.revision!r}"
    )
