"""Whether the teacher serves, told alike over gRPC's health service and over HTTP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2
from preceptor.v1 import teacher_pb2

from preceptor_server.supervision import OnChange

if TYPE_CHECKING:
    from preceptor_server.http.listen import HttpSide  # imports the web framework

SERVICE_NAME = teacher_pb2.DESCRIPTOR.services_by_name["TeacherService"].full_name


class Readiness:
    """Of the service and of the server as a whole."""

    def __init__(self, servicer: health.aio.HealthServicer, http: HttpSide | None) -> None:
        self._servicer = servicer
        self._http = http

    async def set(self, *, is_serving: bool) -> None:
        if self._http is not None:
            self._http.set_serving(is_serving)
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._servicer.set(name, status)

    def follow(self, *, until: asyncio.Event) -> OnChange:
        """For an engine that may die: tells its health, until the server drains, when it stays as it is."""

        async def tell(is_alive: bool) -> None:
            if not until.is_set():
                await self.set(is_serving=is_alive)

        return tell
