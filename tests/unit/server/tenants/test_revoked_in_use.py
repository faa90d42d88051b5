from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from preceptor_server.cli import main
from preceptor_server.errors import UnauthenticatedError
from preceptor_server.tenants.certificates import ServerCertificates
from preceptor_server.tenants.config import AccessConfig, TlsConfig
from preceptor_server.tenants.directory import TenantDirectory
from preceptor_server.tenants.guesses import KeyGuesses
from preceptor_server.tenants.keys import bearer_key
from preceptor_server.tenants.reloading import Reloader
from preceptor_server.tenants.tls import grpc_credentials

from tests.certificates import Authority
from tests.unit.server.tenants.tls_servers import grpc_channel


async def test_a_key_that_is_revoked_is_refused_on_an_open_connection_and_its_successor_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole room at once: the command, the file, the thread that follows it, TLS, and a call's metadata."""
    file = tmp_path / "access.toml"

    def new_key() -> str:
        assert main(["keys", "new", "--tenant", "a", "--file", str(file)]) == 0
        return capsys.readouterr().out.strip()

    old = new_key()
    authority = Authority(tmp_path)
    issued = authority.issue()
    # A key is unknown until the file is read again, and this test asks more often than a person would.
    directory = TenantDirectory(AccessConfig(file=file), guesses=KeyGuesses(max_wrong=1_000_000))
    certificates = ServerCertificates(TlsConfig(certificate=issued.certificate, key=issued.key))

    async def identify(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        try:
            key = bearer_key(str(metadata["authorization"]))
            return directory.identify(key, peer=context.peer()).name.encode()
        except UnauthenticatedError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.reason)
            raise

    handler = grpc.method_handlers_generic_handler("t.T", {"M": grpc.unary_unary_rpc_method_handler(identify)})
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port("127.0.0.1:0", grpc_credentials(certificates))
    await server.start()
    reloader = Reloader([directory, certificates], seconds=0.01)
    reloader.start()
    try:
        async with grpc_channel(port, ca=authority.ca) as channel:
            method: Any = channel.unary_unary("/t.T/M")  # Any: the stubs know no call without serializers

            async def answer(key: str) -> str:
                try:
                    name: bytes = await method(b"", metadata=(("authorization", f"Bearer {key}"),))
                except grpc.aio.AioRpcError as error:
                    return error.details() or ""
                return name.decode()

            async def until(key: str, wanted: str) -> set[str]:
                """What was answered before."""
                before = set()
                while (now := await answer(key)) != wanted:
                    before.add(now)
                    await asyncio.sleep(0.01)
                return before

            assert await answer(old) == "a"
            young = new_key()
            assert await until(young, "a") <= {"UNKNOWN_KEY"}
            assert main(["keys", "revoke", old.split("_")[1], "--file", str(file)]) == 0
            assert await until(old, "REVOKED_KEY") <= {"a"}
            assert await answer(young) == "a"
    finally:
        reloader.stop()
        await server.stop(0)
