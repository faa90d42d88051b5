"""Whose call it is: from a key and an address to a tenant. Asked for every request, so that a key that is revoked or
expires stops working on open connections too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from preceptor_server.errors import UnauthenticatedError
from preceptor_server.tenants.access_file import Access, access_paths, read_access
from preceptor_server.tenants.config import AccessConfig
from preceptor_server.tenants.guesses import KeyGuesses
from preceptor_server.tenants.keys import NO_KEY, UNKNOWN_KEY, parse_key, verify
from preceptor_server.tenants.peers import peer_name
from preceptor_server.tenants.reloading import ReloadedFiles
from preceptor_server.tenants.tenant import Tenant

logger = logging.getLogger(__name__)

ANONYMOUS_PREFIX = "peer:"
"""No tenant of a file has a colon in its name."""
_WRITABLE_BY_OTHERS = 0o022


class TenantDirectory:
    """Tenants of an access file, and those that stand for the addresses of callers without keys."""

    def __init__(
        self,
        config: AccessConfig,
        *,
        guesses: KeyGuesses | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Reads the file. Raises StartupError where it cannot be used."""
        self._config = config
        self._guesses = guesses or KeyGuesses()
        self._now = now
        self._files: ReloadedFiles[Access] | None = None
        if config.file is not None:
            self._files = _open(config.file)

    @property
    def has_keys(self) -> bool:
        """Whether there is a file to look keys up in."""
        return self._files is not None

    @property
    def num_reloads(self) -> int:
        return self._files.num_reloads if self._files else 0

    @property
    def num_reload_failures(self) -> int:
        """How often the file became one that cannot be used; what was read before stays in force."""
        return self._files.num_failures if self._files else 0

    def refresh(self) -> None:
        """Reads the file again where it changed. A Reloader calls it."""
        if self._files is not None:
            self._files.refresh()

    def peer_name(self, peer: str) -> str:
        """The name of the peer that gRPC or an ASGI server tells, as quotas and logs shall have it."""
        return peer_name(peer, ipv6_prefix=self._config.ipv6_prefix)

    def identify(self, key: str | None, *, peer: str) -> Tenant:
        """The tenant of a key; of a caller without one, or where there is no file to look keys up in, that of its
        address. Raises UnauthenticatedError, and QuotaExceededError after many wrong keys from the peer."""
        name = self.peer_name(peer)
        if key is None or self._files is None:
            return self._anonymous(name)
        access = self._files.value
        try:
            shown = parse_key(key)
            record = verify(shown, access.keys.get(shown.id), now=self._now())
        except UnauthenticatedError as error:
            if error.reason == UNKNOWN_KEY:
                self._guesses.wrong(name)
            raise
        return access.tenants[record.tenant]

    def _anonymous(self, peer: str) -> Tenant:
        if self._config.requires_key:
            raise UnauthenticatedError(
                "this server asks for a key: set PRECEPTOR_API_KEY, or send authorization: Bearer <key>",
                reason=NO_KEY,
            )
        return self._config.anonymous_limits.to_tenant(ANONYMOUS_PREFIX + peer, rights=self._config.anonymous_rights)


def _open(path: Path) -> ReloadedFiles[Access]:
    files = ReloadedFiles(
        f"access.file={path}", load=lambda: read_access(path), paths=lambda: [path, *access_paths(path)]
    )
    access = files.value
    logger.info("access file=%s tenants=%d keys=%d", path, len(access.tenants), len(access.keys))
    if not access.keys:
        logger.warning("access file=%s has no keys: preceptor-server keys new --tenant NAME makes one", path)
    # Whoever reads the hashes learns no key from them; whoever writes them lets in whom they like.
    for one in access_paths(path):
        if one.stat().st_mode & _WRITABLE_BY_OTHERS:
            logger.warning("access file=%s can be written by others, who could add keys: chmod go-w", one)
    return files
