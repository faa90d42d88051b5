"""Saves a run that cannot go on, and says in one sentence why it ended, what is saved and how to continue.

Knows nothing of steps: what ends a run is an error, and it may come from any part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from preceptor_client.errors import PreceptorError, TeacherUnavailableError
from preceptor_client.train.errors import (
    InvalidDataError,
    InvalidPartError,
    InvalidWeightsError,
    StopRequestedError,
    TrainingStoppedError,
)
from preceptor_client.train.learner.checkpoint_folders import latest_checkpoint
from preceptor_client.train.run.config import RunSection
from preceptor_client.train.run.display import Display
from preceptor_client.train.teacher.config import TeacherConfig

_log = logging.getLogger(__name__)

_OF_THE_RUN = (TrainingStoppedError, InvalidDataError, InvalidPartError, InvalidWeightsError)
"""Their messages are about the run, and go on with what is saved of it."""


class NotWrittenError(TrainingStoppedError):
    """A file of the run could not be written, so that nothing more can be saved either."""


class Endings:
    """Of one run."""

    def __init__(
        self,
        config: RunSection,
        *,
        teachers: Iterable[TeacherConfig],
        save: Callable[[], Path],
        display: Display,
    ) -> None:
        """`save` saves the step that the run is at."""
        self._config = config
        self._teachers = {teacher.place: teacher for teacher in teachers}
        self._save = save
        self._display = display

    def of(self, error: PreceptorError, *, step: int) -> PreceptorError:
        """What to raise for an error after so many steps, or the error itself. The step is saved, where there is one:
        an error that is raised on purpose leaves the weights as they were after it."""
        if isinstance(error, NotWrittenError):
            return error
        if isinstance(error, TeacherUnavailableError):
            return self._without_teacher(error, step=step)
        if isinstance(error, StopRequestedError):
            return self._on_request(step=step)
        if not step:
            is_bare = isinstance(error, TrainingStoppedError)
            return TrainingStoppedError(f"{error}. Nothing is saved: this was the first step") if is_bare else error
        saved = f"tep {step} is saved in {self._save()}; the same command continues from there"
        if isinstance(error, _OF_THE_RUN):
            return TrainingStoppedError(f"{error}. S{saved}")
        self._display.warning(f"s{saved}")
        return error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While the block writes files of the run: raises NotWrittenError where the disk does not take them. The row
        of a step may be among what is lost then, so the step is not saved: it is done again from the last
        checkpoint."""
        try:
            yield
        except PreceptorError:  # one of them is an OSError too
            raise
        except OSError as error:
            newest = latest_checkpoint(self._config.directory)
            where = f"continues from {newest}" if newest else "starts the run again"
            raise NotWrittenError(
                f"run.directory: {self._config.directory} cannot be written to ({error}): once it can, the same "
                f"command {where}"
            ) from error

    def _without_teacher(self, error: TeacherUnavailableError, *, step: int) -> TrainingStoppedError:
        patience = max(teacher.patience_seconds for teacher in self._teachers.values())
        folder = self._save()
        return TrainingStoppedError(
            f"no answer from the teacher at {' or '.join(self._teachers)} for {patience:.0f} s ({error}). Step {step} "
            f"is saved in {folder}; the same command continues from there once the teacher is back"
        )

    def _on_request(self, *, step: int) -> StopRequestedError:
        _log.info("run stops on request: step=%d", step)
        if not step:
            return StopRequestedError(
                "stopped before the first step was done: there is nothing to save, and the same command starts the run"
            )
        self._display.notice(f"saving step {step}")
        folder = self._save()
        return StopRequestedError(
            f"stopped: step {step} of {self._config.num_steps} is saved in {folder}; the same command continues from "
            "there"
        )
