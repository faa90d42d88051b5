"""Counts the examples that a run leaves out and lists them in its bad_examples.jsonl. Finds none itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.step_lines import read_lines
from preceptor_client.train.errors import InvalidDataError, RunDirectoryError

_log = logging.getLogger(__name__)

BAD_EXAMPLES_FILE = "bad_examples.jsonl"

OnBadExample = Literal["stop", "skip"]
Source = str
"""Where examples are from: "train" or "heldout", or "math/train" where a task named math has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadExample:
    """One example that cannot be used; a line of the file."""

    of: Source
    where: str
    why: str
    step: int | None
    """After how many steps it was found; None where it was taken out of the data before the first."""


class BadExamples:
    """Stops a run at its first bad example, or leaves bad ones out, up to a limit.

    What is found before the first step is taken out of the data, and the order of the rest follows from that: so a run
    that goes on after a checkpoint takes out what the file lists, no more and no less. What is found at a step stays in
    the data: it is left out of that step, and of every later one that it is dealt to.
    """

    def __init__(
        self,
        *,
        policy: OnBadExample = "stop",
        limit: int = 0,
        directory: Path | None = None,
        is_resumed: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """`limit` is how many may be left out. Without a folder nothing is written. `tell` hears of each that a step
        leaves out."""
        self._tell = tell
        self.policy = policy
        self._limit = limit
        self._path = directory / BAD_EXAMPLES_FILE if directory else None
        self._found: dict[tuple[Source, str], BadExample] = {}
        self.is_settled = is_resumed and policy == "skip"
        """Whether the data is what it was at the first step: nothing more is taken out of it."""
        self._num_left: dict[Source, int] = {}
        if self._path and is_resumed:
            self._found = {(one.of, one.where): one for one in _read(self._path)}
            # Whole lines only: a kill may have torn the last one.
            self._write(self.found, mode="w")
            if policy == "stop" and any(one.step is None for one in self.found):
                raise RunDirectoryError(
                    f"this run left out the examples of {self._path}, and the order of the others follows from that: "
                    "set data.on_bad_example=skip, or choose another run.directory"
                )
        elif self._path:
            self._path.unlink(missing_ok=True)

    @property
    def found(self) -> tuple[BadExample, ...]:
        """In the order in which they were found, once each."""
        return tuple(self._found.values())

    def leave_out(self, error: InvalidDataError, *, of: Source) -> None:
        """Takes the example that the error names out of the data, before the first step. Raises the error where a bad
        example stops the run, and where the whole source is at fault."""
        self._refuse_to_stop_here(error)
        if self.is_settled and not self._is_taken_out(of, error.where):
            raise InvalidDataError(
                f"{error.why}; it was not so when this run began: restore the file, or take another run.directory",
                where=error.where,
            )
        self._add(error, of=of, step=None)

    def leave_out_unless_settled(self, error: InvalidDataError, *, of: Source) -> None:
        """The same for what is not known of a row alone: it may have come to be so since the first step, through
        another teacher, and then the steps that the example is dealt to go on without it."""
        if not self.is_settled:
            self.leave_out(error, of=of)

    def holds(self, example: Example, *, of: Source) -> bool:
        """Whether the example was taken out of the data."""
        return self._is_taken_out(of, example.name)

    def skip(self, error: InvalidDataError, *, of: Source, step: int) -> None:
        """Leaves the example out of a step. Raises the error where a bad example stops the run, and InvalidDataError
        where too many were found, or all."""
        self._refuse_to_stop_here(error)
        if self._add(error, of=of, step=step) and self._tell:
            self._tell(f"step {step} goes on without {error}")
        num_skipped = sum(one.of == of and one.step is not None for one in self._found.values())
        self.refuse_too_many(of=of, num_left=max(0, self._num_left[of] - num_skipped) if of in self._num_left else None)

    def at_step(self, step: int, *, of: Source) -> Skipping:
        """What `skip` does at this step, and a count of how often."""
        return Skipping(self, of=of, step=step)

    def left(self, examples: Sequence[Example], *, of: Source) -> list[Example]:
        """Those that were not taken out of the data. Raises InvalidDataError where too many were."""
        left = [example for example in examples if not self.holds(example, of=of)]
        self.refuse_too_many(of=of, num_left=len(left) if examples else None)
        self._num_left[of] = len(left)
        return left

    def refuse_too_many(self, *, of: Source, num_left: int | None) -> None:
        """Raises InvalidDataError where the limit is passed, or no example of a source is left."""
        if num_left == 0:
            first = next(one for one in self._found.values() if one.of == of)
            raise InvalidDataError(
                f"{setting_of(of)}: every example is bad{self._listed()}; the first: {first.where}: {first.why}"
            )
        if len(self._found) > self._limit and self.policy == "skip":
            raise InvalidDataError(
                f"{len(self._found)} examples were left out{self._listed()}, more than data.max_bad_examples="
                f"{self._limit}: mend them, or raise it"
            )

    def warnings(self) -> tuple[str, ...]:
        """What to tell a person about those that were taken out before the first step."""
        found = [one for one in self._found.values() if one.step is None]
        if not found:
            return ()
        first = found[0]
        return (f"{len(found)} bad example(s) left out{self._listed()}; the first: {first.where}: {first.why}",)

    def _refuse_to_stop_here(self, error: InvalidDataError) -> None:
        if not error.where:
            raise error
        if self.policy == "stop":
            hint = "; mend it, or set data.on_bad_example=skip to go on without it" if self._path else ""
            raise InvalidDataError(f"{error.why}{hint}", where=error.where) from error

    def _is_taken_out(self, of: Source, where: str) -> bool:
        found = self._found.get((of, where))
        return found is not None and found.step is None

    def _add(self, error: InvalidDataError, *, of: Source, step: int | None) -> bool:
        """Whether it was not known before."""
        if (of, error.where) in self._found:
            return False
        bad = BadExample(of=of, where=error.where, why=error.why, step=step)
        self._found[of, error.where] = bad
        _log.warning("bad example left out: of=%s step=%s where=%s why=%s", of, step, bad.where, bad.why)
        self._write([bad], mode="a")
        return True

    def _write(self, found: Sequence[BadExample], *, mode: Literal["w", "a"]) -> None:
        if self._path and found:
            with self._path.open(mode, encoding="utf-8") as file:
                file.writelines([json.dumps(asdict(bad)) + "\n" for bad in found])

    def _listed(self) -> str:
        return f" (listed in {self._path})" if self._path else ""


class Skipping:
    """Called with each bad example of one step."""

    def __init__(self, bad: BadExamples, *, of: Source, step: int) -> None:
        self.num_skipped = 0
        self._bad = bad
        self._of: Source = of
        self._step = step

    def __call__(self, error: InvalidDataError) -> None:
        """Raises where the run stops at it."""
        self._bad.skip(error, of=self._of, step=self._step)
        self.num_skipped += 1


def setting_of(source: Source) -> str:
    """The setting that names a source of examples: "data.train", or "tasks.math.data.train"."""
    task, _, which = source.rpartition("/")
    return f"tasks.{task}.data.{which}" if task else f"data.{which}"


def _read(path: Path) -> list[BadExample]:
    rows = read_lines(path, what="a bad example")
    try:
        return [BadExample(of=row["of"], where=row["where"], why=row["why"], step=row["step"]) for row in rows]
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path}: a line of it is no bad example: {error!r}") from error
