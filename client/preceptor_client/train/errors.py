"""What can go wrong in training, for reasons that a user can change.

PreceptorError
└── TrainError
    ├── InvalidDataError (also ValueError)    a data file, or one example, cannot be used; file and line are named
    ├── InvalidStudentError (also ValueError) the student cannot be loaded, or not be trained
    ├── InvalidPartError (also ValueError)    a part that the settings name cannot be used; the key is named
    ├── InvalidEpisodeError (also ValueError) one episode cannot be used: its environment, engine or reward is at fault
    ├── InvalidWeightsError (also ValueError) weights or credit do not fit the step
    ├── UnsuitableTeacherError                the server hosts no teacher that fits this student and these settings
    ├── RunDirectoryError                     the run directory holds something else
    ├── TrainingStoppedError                  a run cannot go on: no teacher, NaN losses, too many failed positions
    └── StopRequestedError                    a run was asked to stop, as by Ctrl-C; what is saved is named
"""

from __future__ import annotations

from preceptor_client.errors import PreceptorError


class TrainError(PreceptorError):
    """Anything that the trainer raises on purpose."""


class InvalidDataError(TrainError, ValueError):
    """A data file, or one example of it, cannot be used; the message names the file and the line."""

    def __init__(self, why: str, *, where: str = "") -> None:
        """`where` is the example at fault, such as "train.jsonl:17"; empty where it is the source as a whole."""
        super().__init__(f"{where}: {why}" if where else why)
        self.why = why
        self.where = where


class InvalidStudentError(TrainError, ValueError):
    """The student cannot be loaded, or not be trained."""


class UnsuitableTeacherError(TrainError):
    """The server hosts no teacher that fits this student and these settings."""


class InvalidPartError(TrainError, ValueError):
    """A part that the settings name by an import path cannot be used; the message begins with the key."""


class InvalidEpisodeError(TrainError, ValueError):
    """One episode cannot be used: its environment, its engine or its reward is at fault. The others go on."""

    def __init__(self, why: str, *, where: str = "") -> None:
        """`where` names the episode."""
        super().__init__(f"{where}: {why}" if where else why)
        self.why = why
        self.where = where


class InvalidWeightsError(TrainError, ValueError):
    """The weights or the credit that a part gave for the positions of a step do not fit the step."""


class RunDirectoryError(TrainError):
    """The run directory holds another run, or something that is no run."""


class TrainingStoppedError(TrainError):
    """The run cannot go on; the message says where it was saved and how to continue."""


class StopRequestedError(TrainError):
    """The run was asked to stop and did; the message says what is saved and how to continue."""
