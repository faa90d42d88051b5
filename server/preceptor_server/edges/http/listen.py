"""The HTTP side as a part of the server's life: bind, answer while the model loads, serve, drain. Runs uvicorn."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from preceptor_server.bind_address import joined
from preceptor_server.edges.http.app import build_app
from preceptor_server.edges.http.config import HttpConfig
from preceptor_server.edges.http.recorder import Recorder
from preceptor_server.edges.http.state import HttpState
from preceptor_server.edges.http.timed_head import timed_head
from preceptor_server.edges.identity import Identity, RefusalObserver
from preceptor_server.errors import StartupError
from preceptor_server.observability.observatory import Observatory
from preceptor_server.serving import ScoreService
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.tls import ssl_context

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 20


class HttpSide:
    """Answers on a socket of its own, in the event loop that it is started in."""

    def __init__(
        self,
        config: HttpConfig,
        *,
        identity: Identity,
        observatory: Observatory,
        certificates: ServerCertificates | None = None,
    ) -> None:
        """Binds. Raises StartupError where the port is in use."""
        self._config = config
        self._state = HttpState(config, identity=identity, observatory=observatory)
        self._socket = _bind(config)
        self._server = _Server(
            uvicorn.Config(
                build_app(self._state),
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # anyone could name any address
                ws="none",
                http=timed_head(config.head_seconds, answer_seconds=config.timeout_seconds),
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            )
        )
        if certificates is not None:
            self._server.config.load()
            self._server.config.ssl = ssl_context(certificates)
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """host:port, with the port that the kernel gave."""
        return joined(self._config.host, self._socket.getsockname()[1])

    @property
    def recorder(self) -> Recorder:
        """To be told of every group."""
        return self._state.recorder

    def tell_refusals(self, observer: RefusalObserver) -> None:
        """Tells it of callers without a key or a right."""
        self._state.refusals = observer

    def start(self) -> None:
        """Answers from here on, though there is no teacher yet."""
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]), name="http")

    def host(self, service: ScoreService) -> None:
        """The teacher can be asked from here on."""
        self._state.host(service)

    def set_serving(self, is_serving: bool) -> None:
        """Follows gRPC's health."""
        self._state.set_serving(is_serving)

    async def stop(self, drain_seconds: float) -> None:
        """Takes nothing new, and gives what is in flight so much time. Stopping twice is fine."""
        self._state.drain()
        self._server.config.timeout_graceful_shutdown = max(1, math.ceil(drain_seconds))
        self._server.should_exit = True
        if self._serving is not None:
            [outcome] = await asyncio.gather(self._serving, return_exceptions=True)
            if isinstance(outcome, Exception):
                logger.error("http ended by itself", exc_info=outcome)
        self._socket.close()


class _Server(uvicorn.Server):
    """Signals are the composition root's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(config: HttpConfig) -> socket.socket:
    assert config.port is not None, "without a port there is no HTTP side"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            # So that a server can start where connections of the one before linger; two at once it does not allow.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(128)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise StartupError(
            f"http: cannot bind to {joined(config.host, config.port)} ({error}): is the port in use? Set http.port to "
            "another, or to 0"
        ) from error
    bound.setblocking(False)
    return bound
