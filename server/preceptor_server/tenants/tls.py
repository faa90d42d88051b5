"""TLS for both sides: credentials for gRPC and a context for Python's servers, which follow replaced certificates."""

from __future__ import annotations

import ssl

import grpc

from preceptor_server.tenants.certificates import Certificates, ServerCertificates


def grpc_credentials(certificates: ServerCertificates) -> grpc.ServerCredentials:
    """For one port: gRPC asks at each new connection whether there is a newer certificate, and is told of each once."""
    given = certificates.value

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        value = certificates.value
        if value is given:
            return None
        given = value
        return _configuration(value)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(given),
        newer,  # type: ignore[arg-type]  # the stubs leave out None, which gRPC documents as "no change"
        require_client_authentication=certificates.requires_client_certificate,
    )


def ssl_context(certificates: ServerCertificates) -> ssl.SSLContext:
    """For uvicorn (`config.load()`, then `config.ssl = ...`, which every release takes) and whatever else serves with
    Python's TLS: each handshake is made with the certificate in force."""
    context = certificates.value.context

    def choose(connection: ssl.SSLObject, *_: object) -> None:
        """Called for each handshake, also where the client names no server."""
        connection.context = certificates.value.context

    context.sni_callback = choose
    return context


def _configuration(value: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(value.key, value.certificate)], root_certificates=value.client_ca
    )
