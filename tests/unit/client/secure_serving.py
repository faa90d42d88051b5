"""A scripted teacher behind TLS, with certificates of an authority made for the test; and one that asks for a key."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme
from google.protobuf.message import Message
from preceptor.v1 import teacher_pb2
from preceptor.v1.teacher_pb2_grpc import add_TeacherServiceServicer_to_server

from tests.unit.client.scripted_teacher import ScriptedTeacher


class Authority:
    """Issues certificates, and writes them where a client looks for them."""

    def __init__(self, folder: Path, *, name: str = "authority") -> None:
        self._authority = trustme.CA(organization_name=name)
        self._folder = folder
        self.ca = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.ca)
        self.server = self._authority.issue_cert("127.0.0.1", "localhost")

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.configure_cert(context)
        return context

    def client_pair(self, name: str = "client") -> tuple[Path, Path]:
        issued = self._authority.issue_cert(f"{name}@example")
        pair = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(pair[0])
        issued.private_key_pem.write_to_path(pair[1])
        return pair


@asynccontextmanager
async def serving_by_tls(
    teacher: ScriptedTeacher, authority: Authority, *, client_ca: Path | None = None
) -> AsyncIterator[str]:
    """With `client_ca` a client needs a certificate of that authority."""
    credentials = grpc.ssl_server_credentials(
        [(authority.server.private_key_pem.bytes(), b"".join(pem.bytes() for pem in authority.server.cert_chain_pems))],
        root_certificates=client_ca.read_bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_TeacherServiceServicer_to_server(teacher, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


@dataclass
class KeyedTeacher(ScriptedTeacher):
    """Lets in who has the key."""

    key: str = ""

    async def Score(
        self, request: teacher_pb2.ScoreRequest, context: grpc.aio.ServicerContext[Message, Message]
    ) -> teacher_pb2.ScoreResponse:
        given = dict(context.invocation_metadata() or ()).get("authorization")
        if given != f"Bearer {self.key}":
            self.requests.append(request)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such key")
        return await super().Score(request, context)
