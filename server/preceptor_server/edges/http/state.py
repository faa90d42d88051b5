"""What the HTTP side knows while it runs: settings, the teacher once it serves, who watches, whose turn it is."""

from __future__ import annotations

from preceptor import __version__

from preceptor_server.callers import Caller
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.http.gate import Gate
from preceptor_server.edges.http.reading import ReadingSlots
from preceptor_server.edges.http.recorder import Recorder
from preceptor_server.edges.http.students import Students
from preceptor_server.edges.identity import Identity, RefusalObserver
from preceptor_server.errors import EngineUnavailableError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.observability.config import ObserveConfig
from preceptor_server.observability.observatory import Observatory
from preceptor_server.serving import ScoreService

_LOADING_SECONDS = 2.0
"""When to ask again while the model is loaded."""


class HttpState:
    """Made before the model is loaded, so that a server can be looked at from its first second."""

    def __init__(
        self, config: HttpConfig, *, identity: Identity | None = None, observatory: Observatory | None = None
    ) -> None:
        self.config = config
        self.identity = identity or Identity()
        self.recorder = Recorder(max_records=config.record, max_bytes=config.record_bytes)
        self.observatory = observatory or Observatory(ObserveConfig(), version=__version__)
        self.traffic = self.observatory.traffic
        self.students = Students(config.tokenizers)
        self.gate = Gate(
            max_groups=config.max_groups,
            max_waiting=config.max_waiting,
            share=config.share,
            is_contended=lambda: self.traffic.is_at_work("grpc"),
        )
        self.bodies = ReadingSlots(config.max_groups + config.max_waiting)
        """More could not wait for their turn."""
        self.refusals: RefusalObserver | None = None
        self.is_serving = False
        self._service: ScoreService | None = None

    def teacher(self, name: str, caller: Caller) -> HostedTeacher:
        """The teacher of that name, empty for the only one. Raises as `Teachers.find`, and EngineUnavailableError until
        there is one."""
        return self.service.teachers.find(name, tenant=caller.tenant)

    @property
    def service(self) -> ScoreService:
        """Raises EngineUnavailableError until there is one."""
        if self._service is None:
            raise EngineUnavailableError("the model is being loaded", retry_after_seconds=_LOADING_SECONDS)
        return self._service

    def host(self, service: ScoreService) -> None:
        """The model is loaded and checked."""
        self._service = service
        self.recorder.teachers = service.teachers

    def set_serving(self, is_serving: bool) -> None:
        """Follows gRPC's health."""
        self.is_serving = is_serving

    def drain(self) -> None:
        """Nothing new is answered for long."""
        self.set_serving(False)
        self.recorder.close()
