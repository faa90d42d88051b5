"""Access files and keys as the server's `access.file` takes them, written by their description and not by its code."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.service.trees import Tree

SETTING = "access.file"
NO_KEYS = f"the server has no {SETTING}: tenants have no keys yet"
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


def has_keys(tree: Tree) -> bool:
    """Whether the server knows tenants by keys."""
    return tree.has_setting(SETTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of a tenant."""

    tenant: str
    id: str = field(default_factory=lambda: "".join(secrets.choice(_ID_ALPHABET) for _ in range(12)))
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    expires: str = ""
    """A TOML date."""
    is_revoked: bool = False

    @property
    def text(self) -> str:
        """What a caller shows."""
        return f"prk_{self.id}_{self.secret}"


def write_access(path: Path, keys: Sequence[Key], *, tenants: Mapping[str, Mapping[str, object]]) -> Path:
    """`tenants`: the settings of each. Written beside and renamed, for the server may be reading."""
    lines: list[str] = []
    for name, settings in tenants.items():
        lines += [f'[tenants."{name}"]', *(f"{setting} = {_toml(value)}" for setting, value in settings.items()), ""]
    for key in keys:
        digest = hashlib.sha256(key.secret.encode()).hexdigest()
        lines += ["[[keys]]", f'id = "{key.id}"', f'tenant = "{key.tenant}"', f'sha256 = "{digest}"']
        lines += [f"expires = {key.expires}"] if key.expires else []
        lines += ["revoked = true", ""] if key.is_revoked else [""]
    unfinished = path.with_suffix(".part")
    unfinished.touch(mode=0o600)
    unfinished.write_text("\n".join(lines))
    unfinished.replace(path)
    return path


def _toml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
