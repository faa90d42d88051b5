"""`preceptor weights`: has a teacher take new weights, or an adapter, while it serves. Loads nothing itself."""

from __future__ import annotations

import asyncio
from typing import Self

from preceptor.settings import InvalidSettingsError, load_settings
from pydantic import Field, model_validator
from pydantic_settings import CliImplicitFlag
from rich.console import Console

from preceptor_client.commands.connection_settings import ConnectionSettings
from preceptor_client.commands.output import FAILED, INVALID_SETTINGS, complain
from preceptor_client.errors import PreceptorError
from preceptor_client.teacher import TeacherClient
from preceptor_client.types import WeightUpdate

PROGRAM = "preceptor weights"


class WeightsSettings(ConnectionSettings):
    """Has a teacher take new weights, or an adapter, while it serves."""

    path: str = ""
    """Folder of the weights, as the server sees it: inside its engine.weights_folder, and relative to it."""
    adapter: str = ""
    """Name of the adapter to load, or to replace; empty replaces the teacher's own weights."""
    unload: CliImplicitFlag[bool] = False
    """Take --adapter away instead."""
    timeout_seconds: float = Field(600.0, gt=0, le=86_400)
    """How long to wait until the weights serve; what has begun goes on after that."""

    @model_validator(mode="after")
    def _says_what_to_do(self) -> Self:
        if self.unload and not self.adapter:
            raise ValueError("--unload takes an adapter away: name it with --adapter")
        if self.unload and self.path:
            raise ValueError("--path is for weights to load: leave it out with --unload")
        if not (self.unload or self.path):
            raise ValueError("give --path, or --unload with --adapter")
        return self


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    try:
        settings = load_settings(WeightsSettings, arguments, program=PROGRAM)
    except InvalidSettingsError as error:
        complain(str(error))
        return INVALID_SETTINGS
    try:
        update = asyncio.run(_update(settings))
    # ValueError: an address without a port.
    except (PreceptorError, ValueError) as error:
        complain(f"{PROGRAM}: {error}")
        return FAILED
    Console().print(summary(update, settings=settings), markup=False, highlight=False, soft_wrap=True)
    return 0


async def _update(settings: WeightsSettings) -> WeightUpdate:
    async with TeacherClient(settings.address, timeout_seconds=settings.timeout_seconds, **settings.access()) as client:
        return await client.update_weights(
            settings.path, adapter=settings.adapter, unload=settings.unload, teacher=settings.teacher
        )


def summary(update: WeightUpdate, *, settings: WeightsSettings) -> str:
    """One line: what serves now, and what it cost."""
    what = f"adapter {settings.adapter}" if settings.adapter else "teacher"
    if settings.unload:
        return f"{what}: revision {update.previous_revision} was taken away"
    before = f", before it {update.previous_revision}" if update.previous_revision else ", which is new"
    return f"{what}: revision {update.revision}{before}; scoring stood still for {update.paused_ms:.0f} ms"
