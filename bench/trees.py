"""Packages of this repository as they were at another commit."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path


def unpack(commit: str, folder: Path, *, packages: tuple[str, ...]) -> list[Path]:
    """Writes `packages` (top folders: client, server, proto) of a commit into `folder`; returns what to put before the
    installed ones."""
    archive = folder / "before.tar"
    command = ["git", "archive", f"--output={archive}", commit, *packages]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"commit {commit} cannot be read, this bench needs the history: {done.stderr.strip()}")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "before", filter="data")
    return [folder / "before" / package for package in packages]
