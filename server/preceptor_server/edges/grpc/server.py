"""The gRPC server: its limits, its address, and the services on it."""

from __future__ import annotations

from typing import cast

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from preceptor.v1.teacher_pb2_grpc import TeacherServiceServicer, add_TeacherServiceServicer_to_server

from preceptor_server.bind_address import joined
from preceptor_server.config import ListenConfig
from preceptor_server.edges.grpc.intake import Intake
from preceptor_server.edges.grpc.interceptor import Interceptor
from preceptor_server.edges.grpc.servicer import TeacherServicer
from preceptor_server.edges.identity import Identity, RefusalObserver
from preceptor_server.edges.readiness import SERVICE_NAME
from preceptor_server.errors import StartupError
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.tls import grpc_credentials

_MANY = 2**31 - 1
_HANDSHAKE_MS = 10_000


def build_server(
    config: ListenConfig,
    *,
    max_message_bytes: int,
    identity: Identity | None = None,
    observer: RefusalObserver | None = None,
) -> grpc.aio.Server:
    """An empty server with this configuration's limits."""
    intake = Intake(
        max_message_bytes=max_message_bytes,
        max_bytes=config.max_bytes_in_flight,
        read_seconds=config.read_seconds,
    )
    return grpc.aio.server(
        interceptors=[Interceptor(identity or Identity(), intake, observer=observer)],
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Without this two servers would share a port in silence.
            ("grpc.so_reuseport", 0),
            # Clients ping every 20 s to notice a dead peer; the default would call that abuse.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # A client that wants more waits: HTTP/2 tells it so when it connects.
            # TLS, and the first frame of HTTP/2.
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_concurrent_streams", config.max_calls_per_connection),
            # By default gRPC cancels calls at random once 1,000 wait to be begun.
            ("grpc.server.max_pending_requests", _MANY),
            ("grpc.server.max_pending_requests_hard_limit", _MANY),
            ("grpc.server_max_unrequested_time_in_server", 24 * 3600),
            ("grpc.max_allowed_incoming_connections", config.most_connections),
        ],
    )


def bind(server: grpc.aio.Server, config: ListenConfig, *, certificates: ServerCertificates | None = None) -> str:
    """Binds, with TLS where there are certificates; returns "host:port" with the port that the kernel gave."""
    wanted = joined(config.host, config.port)
    try:
        if certificates is None:
            port = server.add_insecure_port(wanted)
        else:
            port = server.add_secure_port(wanted, grpc_credentials(certificates))
    except RuntimeError as error:
        raise StartupError(
            f"listen: cannot bind to {wanted} ({error}): is the port in use? Set listen.port to another, or to 0"
        ) from error
    return joined(config.host, port)


def add_services(server: grpc.aio.Server, servicer: TeacherServicer) -> health.aio.HealthServicer:
    """TeacherService, health and reflection."""
    # The interceptor calls its methods, with a ServedCall in the place of a context.
    add_TeacherServiceServicer_to_server(cast(TeacherServiceServicer, servicer), server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return health_servicer
