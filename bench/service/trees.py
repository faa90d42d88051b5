"""The code that a server or a client is started from: this tree, or another commit's. Knows what a tree can do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.trees import unpack

ROOT = Path(__file__).parents[2]
PACKAGES = ("proto", "server", "client")
HELP_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The packages of one commit, and the fakes of its tests; the bench itself is always this tree's."""

    name: str
    paths: tuple[Path, ...]
    """Folders to put before all others."""

    def environment(self, **extra: str) -> dict[str, str]:
        """Of a process that runs this tree's code."""
        paths = os.pathsep.join([*map(str, self.paths), str(ROOT)])
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
        # Safe path: `python -m` would look into the working directory first, and find this tree's tests there.
        return {**os.environ, **quiet, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1", **extra}

    def has_setting(self, name: str) -> bool:
        """Whether the server has a setting, such as "access.file"."""
        return f"--{name} " in _server_help(self)

    def has_server_module(self, name: str) -> bool:
        """Whether there is preceptor_server/NAME.py, such as "engines/fake"."""
        return any((path / "preceptor_server" / f"{name}.py").exists() for path in self.paths)


def this_tree() -> Tree:
    """The working tree that holds this file."""
    return Tree(name="this tree", paths=tuple(ROOT / package for package in PACKAGES))


def tree_of(commit: str, folder: Path) -> Tree:
    """Unpacks a commit's packages into `folder`. Raises SystemExit where the history lacks it."""
    folder.mkdir(parents=True, exist_ok=True)
    *packages, tests = unpack(commit, folder, packages=(*PACKAGES, "tests"))
    return Tree(name=commit, paths=(*packages, tests.parent))


@cache
def _server_help(tree: Tree) -> str:
    return subprocess.run(
        [sys.executable, "-m", "preceptor_server.cli", "--help"],
        capture_output=True,
        text=True,
        timeout=HELP_SECONDS,
        env=_wide(tree.environment()),
    ).stdout


def _wide(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "COLUMNS": "400"}
