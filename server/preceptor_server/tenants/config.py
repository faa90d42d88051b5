"""Typed settings of access and of TLS, and of a tenant's table in an access file. Imports neither grpc nor ssl."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from preceptor.settings import Section
from pydantic import Field, field_validator, model_validator

from preceptor_server.tenants.tenant import ALL_BUT_UPDATE, Right, Tenant


class TenantLimits(Section):
    """How much of the server a tenant may use."""

    weight: float = Field(1.0, gt=0, le=1000)
    """Share of a teacher beside other tenants: with weights 1 and 3 the second gets three quarters while both ask."""
    tokens_per_second: float | None = Field(None, gt=0)
    """Tokens that it may have scored per second, on average. Default: no limit."""
    max_concurrent: int | None = Field(None, ge=1)
    """Calls that it may have at once. Default: no limit."""
    max_bytes_in_flight: int | None = Field(None, ge=1)
    """Bytes of the messages of these calls. Default: no limit."""
    max_queue_tokens: int | None = Field(None, ge=1)
    """Its tokens that may wait for a teacher at once. Default: no limit but the teacher's own."""
    max_queue_bytes: int | None = Field(None, ge=1)
    """Bytes of its groups that may wait for a teacher at once. Default: no limit but the teacher's own."""

    def to_tenant(self, name: str, *, rights: tuple[Right, ...], teachers: tuple[str, ...] | None = None) -> Tenant:
        return Tenant(
            name=name,
            weight=self.weight,
            rights=frozenset(rights),
            teachers=None if teachers is None else frozenset(teachers),
            tokens_per_second=self.tokens_per_second,
            max_concurrent=self.max_concurrent,
            max_bytes_in_flight=self.max_bytes_in_flight,
            max_queue_tokens=self.max_queue_tokens,
            max_queue_bytes=self.max_queue_bytes,
        )


DEFAULT_RIGHTS = tuple(right for right in Right if right in ALL_BUT_UPDATE)


class TenantTable(TenantLimits):
    """A table [tenants.NAME] of an access file."""

    rights: tuple[Right, ...] = DEFAULT_RIGHTS
    """What it may do: "score", "register" a tokenizer, "look" at what describes the server, "update_weights". Default:
    all but the last."""
    teachers: tuple[str, ...] | None = None
    """Names of the teachers that it may use. Default: all."""

    @field_validator("teachers")
    @classmethod
    def _names_some(cls, teachers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if teachers == ():
            raise ValueError("names no teacher: leave it out for all of them, or leave score out of rights")
        return teachers


class AccessConfig(Section):
    """Who may ask."""

    file: Path | None = None
    """TOML file with tenants and the hashes of their keys, or a folder of such files (a mounted secret). It is read
    again when it changes. `preceptor-server keys new` writes it. Default: none, and callers need no key."""
    anonymous: bool = False
    """Serve callers without a key although there is a file. Callers of one address are one tenant."""
    anonymous_rights: tuple[Right, ...] = DEFAULT_RIGHTS
    """What callers without a key may do: "score", "register", "look", "update_weights". Default: all but the last."""
    anonymous_limits: TenantLimits = TenantLimits()
    """How much callers without a key may use, those of each address by themselves."""
    ipv6_prefix: int = Field(64, ge=32, le=128)
    """IPv6 addresses that agree in this many bits count as one: a host can take many of its network's."""

    @property
    def requires_key(self) -> bool:
        """Whether a caller without a key is refused."""
        return self.file is not None and not self.anonymous

    @model_validator(mode="after")
    def _check_anonymous(self) -> Self:
        if not self.requires_key:
            return self
        for name in ("anonymous_rights", "anonymous_limits"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is set, and callers without a key are refused: set access.anonymous=true, or leave "
                    f"access.{name} out"
                )
        return self


class TlsConfig(Section):
    """TLS of gRPC and of HTTP. The files are read again when they change."""

    certificate: Path | None = None
    """PEM file with the server's certificate, then those that lead to its authority. Default: none, and no TLS."""
    key: Path | None = None
    """PEM file with the certificate's private key, without a password."""
    client_ca: Path | None = None
    """PEM file with the authorities whose certificates clients must show."""
    require_client_certificate: bool = False
    """Refuse connections of clients that show no certificate of `client_ca`. HTTP then speaks TLS 1.3 alone, without
    sessions that outlive an authority."""

    @property
    def is_on(self) -> bool:
        return self.certificate is not None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            there, missing = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise ValueError(f"{there} is set and {missing} is not: set tls.{missing} too, or leave both out")
        if self.require_client_certificate and self.client_ca is None:
            raise ValueError(
                "require_client_certificate is set and client_ca is not: set tls.client_ca to the authority"
            )
        if self.client_ca is not None and not self.require_client_certificate:
            raise ValueError(
                "client_ca is set and nobody is asked for a certificate: set tls.require_client_certificate=true, or "
                "leave tls.client_ca out"
            )
        if self.client_ca is not None and not self.is_on:
            raise ValueError("client_ca is set and there is no TLS: set tls.certificate and tls.key, or leave it out")
        return self
