"""`preceptor train @ run.toml`: trains a student, and prints what came out.

Ctrl-C and SIGTERM end a run at its next boundary, saved; a second one ends it at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from preceptor.settings import dump_settings, load_settings
from rich.console import Console

from preceptor_client.commands.outcome_view import heldout_lines
from preceptor_client.commands.stop_signals import StopSignals, is_of_signal
from preceptor_client.train.errors import StopRequestedError
from preceptor_client.train.learner.checkpoint_folders import latest_checkpoint
from preceptor_client.train.run.config import RunConfig
from preceptor_client.train.stop import StopRequest

PROGRAM = "preceptor train"
STOPPING = "stopping: an update that has begun is finished, then the step is saved; Ctrl-C again ends at once, unsaved"


def run(arguments: list[str]) -> int:
    """Exit status 0 when the run reached its last step; 130 when Ctrl-C ended it before, 143 when SIGTERM did."""
    config = load_settings(RunConfig, arguments, program=PROGRAM)
    stop = StopRequest()
    signals = StopSignals(stop)
    try:
        with signals:
            _train(config, stop=stop)
    except StopRequestedError as error:
        _say(str(error))
    except BaseException as error:
        if not is_of_signal(error):
            raise
        _say(f"ended at once, and nothing was saved now: {_where_it_stands(config.run.directory)}")
    else:
        return 0
    return signals.exit_status


def _train(config: RunConfig, *, stop: StopRequest) -> None:
    # After the settings: a wrong one is reported without the seconds that these imports take.
    from transformers.utils import logging as transformers_logging

    from preceptor_client.train.record.settings_file import to_toml
    from preceptor_client.train.record.summary import RunSummary
    from preceptor_client.train.report import REPORT_FILE
    from preceptor_client.train.run.display import display_for
    from preceptor_client.train.run.train import train

    def show(summary: RunSummary) -> None:
        for text in heldout_lines(summary):
            line(text)
        if summary.loss_first is not None and summary.loss_last is not None:
            line(f"loss: {summary.loss_first:.4f} -> {summary.loss_last:.4f} in {summary.num_steps} steps")
        if summary.failed_groups:
            line(f"groups that failed at the teacher, and were left out: {summary.failed_groups}")
        line(f"model:  {summary.model_folder}")
        line(f"report: {summary.directory / REPORT_FILE}")

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console = _LastingConsole()
    transformers_logging.disable_progress_bar()
    line(to_toml(dump_settings(config)))
    display = display_for(console)
    stop.on_ask(lambda: display.notice(STOPPING) if stop.is_heeded else None)
    show(train(config, display=display, stop=stop))


class _LastingConsole(Console):
    """Falls silent when its reader is gone: in `preceptor train | tee log` Ctrl-C ends tee at once, and the run is not
    saved yet."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _where_it_stands(directory: Path) -> str:
    newest = latest_checkpoint(directory)
    if newest is None:
        return f"{directory} holds no checkpoint, and the same command starts the run"
    return f"the newest checkpoint is {newest}, and the same command continues from there"


def _say(text: str) -> None:
    with suppress(BrokenPipeError):  # as above, with 2>&1
        sys.stderr.write(f"{PROGRAM}: {text}\n")
