"""One server, and all that can be asked of it: encoded, carried there, decoded and verified."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from preceptor.v1 import teacher_pb2

from preceptor_client import descriptions, messages
from preceptor_client.connection import Connection
from preceptor_client.errors import NotImplementedByServerError, TeacherUnavailableError
from preceptor_client.registrations import Registrations
from preceptor_client.request import GroupRequest, RegistrationRequest
from preceptor_client.types import GroupScores, Registration, ServerInfo, WeightUpdate

_SMALLER = "send fewer responses per group, or ask for a smaller top_k or fewer candidates"


class Replica:
    """A server of a teacher, and what was handed to it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._registrations = Registrations(connection)
        self._asking_chat_arguments = asyncio.Lock()
        self._takes_chat_arguments: dict[str, bool] | None = None
        """Per teacher, as the server said on this connection; None = not asked."""

    @property
    def address(self) -> str:
        """host:port."""
        return self._connection.address

    async def info(self, *, include_tokenizer: bool, timeout_seconds: float) -> ServerInfo:
        """What the server hosts, and its limits."""
        answer = await self._connection.call(
            lambda stub: stub.GetInfo,
            teacher_pb2.GetInfoRequest(include_tokenizer=include_tokenizer),
            timeout_seconds=timeout_seconds,
            smaller="ask without the tokenizer",
        )
        return descriptions.decode_info(answer)

    async def register(self, request: RegistrationRequest, *, fingerprint: str, timeout_seconds: float) -> Registration:
        """Hands a student's tokenizer over."""
        return await self._registrations.register(request, fingerprint=fingerprint, timeout_seconds=timeout_seconds)

    def remember(self, request: RegistrationRequest, *, fingerprint: str, registration: Registration) -> None:
        """Hands it over once the server says that it lacks it."""
        self._registrations.remember(request, fingerprint=fingerprint, registration=registration)

    async def score(
        self, group: GroupRequest, *, timeout_seconds: float, keep: Callable[[bytes], None] | None = None
    ) -> GroupScores:
        """The teacher's scores of one group; `keep` is given the answer to store, once it is verified. Raises
        NotImplementedByServerError, before the group is sent, where the server is older than what its chat says and
        would ignore it."""
        if group.has_chat_arguments:
            started = time.monotonic()
            await self._refuse_unless_honoured(group.teacher, timeout_seconds=timeout_seconds)
            timeout_seconds = max(0.0, timeout_seconds - (time.monotonic() - started))
        answer = await self._connection.call(
            lambda stub: stub.Score,
            messages.encode_group(group),
            timeout_seconds=timeout_seconds,
            smaller=_SMALLER,
            cure=self._registrations.cure_for(group.tokenizer_id, teacher=group.teacher),
        )
        scores = messages.decode_scores(answer, group=group)
        if keep is not None:
            keep(messages.encode_stored(answer))
        return scores

    async def update_weights(
        self, path: str, *, adapter: str, unload: bool, teacher: str, timeout_seconds: float
    ) -> WeightUpdate:
        """Has the server take new weights, or take an adapter away."""
        answer = await self._connection.call(
            lambda stub: stub.UpdateWeights,
            teacher_pb2.UpdateWeightsRequest(teacher=teacher, adapter=adapter, path=path, unload=unload),
            timeout_seconds=timeout_seconds,
            smaller="name a shorter path",
            changes_server=True,
        )
        return descriptions.decode_weight_update(answer, unload=unload)

    async def _refuse_unless_honoured(self, teacher: str, *, timeout_seconds: float) -> None:
        """Asks once per connection: another server may stand behind the next one."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._asking_chat_arguments.acquire()
        except TimeoutError as error:
            raise TeacherUnavailableError(f"teacher {self.address} did not say in time what it can do") from error
        try:
            if self._takes_chat_arguments is not None and self._connection.is_connected():
                told = self._takes_chat_arguments
            else:
                remaining = max(0.0, timeout_seconds - (time.monotonic() - started))
                info = await self.info(include_tokenizer=False, timeout_seconds=remaining)
                told = {one.name: one.capabilities.chat_arguments for one in info.teachers}
                self._takes_chat_arguments = told
        finally:
            self._asking_chat_arguments.release()
        # A teacher that is not hosted there is the server's to refuse.
        if not all(takes for name, takes in told.items() if teacher in ("", name)):
            raise NotImplementedByServerError(
                f"prompt.chat: {self.address} would ignore tools, tool calls and template arguments, which its "
                "Capabilities.chat_arguments do not promise: use a newer server, or a teacher with a chat template"
            )

    def is_connected(self) -> bool:
        """Whether a connection stands at this moment; if not, one is tried in the background."""
        return self._connection.is_connected()

    @property
    def num_losses(self) -> int:
        """How often its connection was found lost."""
        return self._connection.num_losses

    async def close(self) -> None:
        """Cancels what is in flight."""
        await self._connection.close()
