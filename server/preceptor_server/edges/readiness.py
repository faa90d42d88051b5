"""Whether the teachers serve, told alike over gRPC's health service and over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2
from preceptor.v1 import teacher_pb2

from preceptor_server.observability.health import Health

if TYPE_CHECKING:
    from preceptor_server.edges.http.listen import HttpSide  # imports the web framework

SERVICE_NAME = teacher_pb2.DESCRIPTOR.services_by_name["TeacherService"].full_name


def health_name(teacher: str) -> str:
    """What gRPC's health service calls one teacher."""
    return f"{SERVICE_NAME}/{teacher}"


class Readiness:
    """Of each teacher, and of the server as a whole, which serves while one of them does."""

    def __init__(self, servicer: health.aio.HealthServicer, http: HttpSide | None, told: Health) -> None:
        self._servicer = servicer
        self._told = told
        self._http = http
        self._is_alive: dict[str, bool] = {}
        self._is_draining = False

    async def set(self, teacher: str, is_alive: bool) -> None:
        """Of one teacher, whose engine came to life or died."""
        self._is_alive[teacher] = is_alive
        self._told.set_serving(teacher, is_alive)
        await self._tell()

    async def drain(self) -> None:
        """Nothing serves any more, whatever becomes of the engines."""
        self._is_draining = True
        self._told.drain()
        await self._tell()

    async def _tell(self) -> None:
        is_serving = not self._is_draining and any(self._is_alive.values())
        if self._http is not None:
            self._http.set_serving(is_serving)
        for name in ("", SERVICE_NAME):
            await self._servicer.set(name, _status(is_serving))
        for teacher, is_alive in self._is_alive.items():
            await self._servicer.set(health_name(teacher), _status(is_alive and not self._is_draining))


def _status(is_serving: bool) -> health_pb2.HealthCheckResponse.ServingStatus:
    return health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
