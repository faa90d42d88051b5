"""A disk that can be filled: a tmpfs of a few megabytes. Needs root, or a user namespace that may mount."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self


class SmallDisk:
    """Mounted at `folder` for the length of a `with` block."""

    def __init__(self, folder: Path, *, megabytes: int) -> None:
        self.folder, self._megabytes = folder, megabytes
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Until nothing fits any more."""
        with self._filler.open("ab", buffering=0) as filler:
            size = 1 << 20
            while size:
                try:
                    filler.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def empty(self) -> None:
        """Takes away what `fill` wrote."""
        self._filler.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"size={self._megabytes}m"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(self.folder)], check=True, capture_output=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)


def is_permitted(folder: Path) -> bool:
    """Whether this process may mount; tried."""
    try:
        with SmallDisk(folder, megabytes=1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
