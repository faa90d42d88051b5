"""How the commands speak: settings errors and failures go to stderr in one line, with the program's name in front."""

from __future__ import annotations

from rich.console import Console

FAILED = 1
"""Exit status of a command that could not do its work."""
INVALID_SETTINGS = 2
"""Exit status of a command that was called wrongly."""
INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended."""


def complain(message: str) -> None:
    """Writes to stderr, as is: no markup, no wrapping."""
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
