"""Shows the progress of a run: a live line at a terminal, plain lines elsewhere. Trains nothing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from preceptor_client.train.record.metrics import MetricRow, MetricValue, own_metrics, task_of

_SECONDS_BETWEEN_PLAIN_NOTICES = 10.0


class Display(Protocol):
    """Where a run shows itself. `notice` may come from another thread."""

    def begin(self, *, step: int, num_steps: int) -> None:
        """Steps start, or go on, after `step`."""

    def step(self, row: MetricRow) -> None:
        """A step is done."""

    def heldout(self, row: MetricRow) -> None:
        """The held-out examples were measured."""

    def notice(self, text: str) -> None:
        """What the run is busy with, or waits for; empty when that is over."""

    def warning(self, text: str) -> None:
        """What a person should know and may want to change; it stays to be read."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display_for(console: Console) -> Display:
    """A live display at a terminal, plain lines in a file or a pipe."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class SilentDisplay:
    """Shows nothing."""

    def begin(self, *, step: int, num_steps: int) -> None:
        del step, num_steps

    def step(self, row: MetricRow) -> None:
        del row

    def heldout(self, row: MetricRow) -> None:
        del row

    def notice(self, text: str) -> None:
        del text

    def warning(self, text: str) -> None:
        del text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace


class PlainDisplay(SilentDisplay):
    """One line per step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._num_steps = 0
        self._last_notice = ""
        self._last_notice_at = 0.0

    def begin(self, *, step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        if step:
            self._line(f"resumed after step {step} of {num_steps}")

    def step(self, row: MetricRow) -> None:
        self._line(f"step {row['step']}/{self._num_steps}  {_step_text(row)}")

    def heldout(self, row: MetricRow) -> None:
        self._line(_heldout_text(row))

    def notice(self, text: str) -> None:
        # Every request of a step may report the same outage, several times a minute.
        is_repeat = text.split(",")[0] == self._last_notice.split(",")[0]
        if not text or (is_repeat and time.monotonic() - self._last_notice_at < _SECONDS_BETWEEN_PLAIN_NOTICES):
            return
        self._last_notice, self._last_notice_at = text, time.monotonic()
        self._line(text)

    def warning(self, text: str) -> None:
        self._line(f"warning: {text}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay(SilentDisplay):
    """A bar with the last step's numbers, and under it what the run is waiting for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("", total=None, visible=False, numbers="")
        self._notice = Text(style="yellow")
        self._live = Live(Group(self._progress, self._notice), console=console, refresh_per_second=4)

    def begin(self, *, step: int, num_steps: int) -> None:
        self._progress.reset(self._task, total=num_steps, completed=step, visible=True)

    def step(self, row: MetricRow) -> None:
        step = row["step"]
        assert isinstance(step, int)
        self._progress.update(self._task, completed=step, numbers=_step_text(row))

    def heldout(self, row: MetricRow) -> None:
        self._console.print(_heldout_text(row), markup=False)

    def notice(self, text: str) -> None:
        self._notice.plain = text

    def warning(self, text: str) -> None:
        self._console.print(f"warning: {text}", markup=False, highlight=False, style="yellow")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notice.plain = ""
        self._live.stop()


def _step_text(row: MetricRow) -> str:
    if row["loss"] is None:
        return f"skipped: no position has a score  {_number(row['step_seconds'], '.1f')} s/step"
    reward = f"reward {_number(row['mean_reward'], '.4g')}  " if "mean_reward" in row else ""
    return (
        f"loss {_number(row['loss'], '.4f')}  {reward}support mass {_number(row['student_mass'], '.3f')}"
        f" (teacher {_number(row['teacher_mass'], '.3f')})  {_number(row['step_seconds'], '.1f')} s/step"
    )


def _heldout_text(row: MetricRow) -> str:
    task = task_of(row)
    when = f"{f' of {task}' if task else ''} after step {row['step']}"
    whose = " with the teacher's prompts" if row["kind"] == "heldout_teacher" else ""
    parts = []
    if "num_correct" in row:
        parts.append(
            f"held-out answers{when}{whose}: {row['num_correct']} of {row['num_examples']} right, "
            f"{_number(row['mean_answer_length'], '.1f')} tokens on average"
        )
    if "loss" in row:
        parts.append(
            f"held-out loss{when}: {_number(row['loss'], '.4f')} over {row['num_positions']} "
            f"positions, {_number(row['scored_share'], '.0%')} of those asked for"
        )
    if "mean_reward" in row:
        parts.append(f"held-out reward{when}: {_number(row['mean_reward'], '.4g')} on average")
    if metrics := own_metrics(row):
        numbers = ", ".join(f"{name} {_number(value, '.4g')}" for name, value in metrics.items())
        parts.append(f"held-out metrics{when}{whose}: {numbers}")
    return "\n".join(parts)


def _number(value: MetricValue, spec: str) -> str:
    return format(value, spec) if isinstance(value, int | float) else "-"
