"""Settings of the workbench."""

from __future__ import annotations

from preceptor.settings import Section
from pydantic import Field


class WorkbenchConfig(Section):
    """Tokenizing, rendering and aligning of what is too large for the event loop."""

    num_threads: int = Field(2, ge=1, le=64)
    """Jobs at once. With two or more, one of them is always left for small jobs and other callers."""
    max_jobs: int = Field(8192, ge=1)
    """Jobs that may be under way or wait; beyond it callers are told to come back later."""
    max_bytes: int = Field(512 * 1024 * 1024, ge=1)
    """Bytes of all those jobs. A job that is larger by itself runs when there is no other."""
    max_jobs_per_caller: int = Field(2048, ge=1)
    """The same of one caller."""
    max_bytes_per_caller: int = Field(128 * 1024 * 1024, ge=1)
    """The same of one caller."""
