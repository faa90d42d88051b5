"""Small `preceptor train` runs as processes, and the losses that they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.service.trees import Tree
from tests.integration.trainers import RunFiles, write_run

STOP_SECONDS = 60
QUESTIONS = ("Say {}", "Repeat {}", "Write {}", "Spell {}")


@dataclass(slots=True, kw_only=True)
class Run:
    """One run. Begun anew, it goes on from its last checkpoint."""

    name: str
    files: RunFiles
    tree: Tree
    prefix: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    max_restarts: int = 3
    num_restarts: int = 0
    num_steps_before: int = 0
    """That it had done when it was last started."""

    @property
    def log(self) -> Path:
        return self.files.settings.with_suffix(".log")

    def start(self) -> None:
        self.num_steps_before = len(self.files.steps())
        command = [*self.prefix, sys.executable, "-m", "preceptor_client.cli", "train", "@", str(self.files.settings)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=self.tree.environment())

    def is_going(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def is_training(self) -> bool:
        """Whether it has done a step since it was last started; or has ended well."""
        has_ended = self.process is not None and self.process.returncode == 0
        return has_ended or (self.is_going() and len(self.files.steps()) > self.num_steps_before)

    def restart_if_failed(self) -> bool:
        """Whether it goes on: a run that ended with an error is begun anew, a few times."""
        if self.is_going():
            return True
        assert self.process is not None, "start comes first"
        if self.process.returncode == 0 or self.num_restarts >= self.max_restarts:
            return False
        self.num_restarts += 1
        self.start()
        return True

    def kill(self) -> None:
        if self.process is not None and self.is_going():
            self.process.kill()
            self.process.wait(STOP_SECONDS)

    def losses(self) -> dict[int, set[float]]:
        """Of each step all losses that were noted: more than one where a step that was repeated came out otherwise."""
        noted: dict[int, set[float]] = {}
        for row in self.files.steps():
            noted.setdefault(int(row["step"]), set()).add(row["loss"])
        return noted

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-600:]


def make_runs(
    folder: Path,
    *,
    student: Path,
    address: str,
    num_steps: int,
    tree: Tree,
    prefix: tuple[str, ...] = (),
    directory: Path | None = None,
    max_restarts: int = 3,
) -> list[Run]:
    """Four runs that ask unlike questions. `directory`: where they write, if not beside their settings."""
    runs = []
    for index, question in enumerate(QUESTIONS):
        files = write_run(
            folder / f"run-{index}", student=student, address=address, num_steps=num_steps, question=question
        )
        if directory is not None:
            text = files.settings.read_text().replace(str(files.directory), str(directory / f"run-{index}"))
            files.settings.write_text(text)
            files = RunFiles(settings=files.settings, directory=directory / f"run-{index}")
        runs.append(Run(name=f"run-{index}", files=files, tree=tree, prefix=prefix, max_restarts=max_restarts))
    return runs


def restart_failed(runs: Sequence[Run]) -> bool:
    """Begins those anew that failed. Whether any goes on."""
    going = [one.restart_if_failed() for one in runs]
    return any(going)


def finish(runs: Sequence[Run], *, seconds: float) -> None:
    """Waits for all of them, and begins those anew that failed; kills what is late."""
    deadline = time.monotonic() + seconds
    while restart_failed(runs) and time.monotonic() < deadline:
        time.sleep(0.1)
    for one in runs:
        one.kill()


def differences(runs: Sequence[Run], expected: Sequence[dict[int, set[float]]]) -> list[str]:
    """In words, one for each run whose losses are not the expected ones."""
    found = []
    for one, wanted in zip(runs, expected, strict=True):
        got = one.losses()
        if got == wanted:
            continue
        missing = sorted(wanted.keys() - got.keys())
        unlike = sorted(step for step in got.keys() & wanted.keys() if got[step] != wanted[step])
        found.append(f"{one.name}: steps missing {missing}, steps with another loss {unlike}; {one.last_words()}")
    return found


def save_losses(path: Path, losses: Sequence[dict[int, set[float]]]) -> None:
    path.write_text(json.dumps([{step: sorted(values) for step, values in one.items()} for one in losses]))


def load_losses(path: Path) -> list[dict[int, set[float]]]:
    return [{int(step): set(values) for step, values in one.items()} for one in json.loads(path.read_text())]
