"""The program `preceptor`: finds a command, and turns its errors into a line and an exit status. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from preceptor.settings import InvalidSettingsError

from preceptor_client.errors import PreceptorError
from preceptor_client.train.errors import InvalidPartError, InvalidWeightsError

COMMANDS = {
    "train": "distil a student from a teacher server",
    "eval": "measure a student on held-out examples",
    "score": "ask a teacher about one text",
    "tail": "show a teacher's requests as they end",
    "report": "write a run's report, or lay runs side by side",
    "weights": "have a teacher take new weights while it serves",
    "doctor": "check that a teacher server can be reached and used",
}

_KEY_OPTIONS = ("--api-key", "--api_key")
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the arguments are the process's own unless given."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if name == "--version":
        sys.stdout.write(f"preceptor {version('preceptor')}\n")
        return 0
    if name not in COMMANDS:
        sys.stderr.write(f"preceptor: no command {name!r}\n\n{_help()}")
        return EXIT_USAGE
    if any(argument.partition("=")[0] in _KEY_OPTIONS for argument in arguments):
        sys.stderr.write(
            "preceptor: an API key is no option, since a list of processes shows it: write it into a file and name "
            "that with --api-key-file, or set PRECEPTOR_API_KEY\n"
        )
        return EXIT_USAGE
    # Before torch is loaded: its threads then sleep at a barrier, where they would spin. Beside another busy process,
    # such as a teacher on the same cores, a training step takes 10 s and not 60; alone it takes about a tenth longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A command brings its own imports: only train and eval need torch.
    run: Callable[[list[str]], int] = import_module(f"preceptor_client.commands.{name}").run
    return _run(run, arguments[1:], program=f"preceptor {name}")


def _run(run: Callable[[list[str]], int], arguments: list[str], *, program: str) -> int:
    try:
        return run(arguments)
    except InvalidSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE
    except (InvalidPartError, InvalidWeightsError) as error:  # a setting too, whose class cannot be used
        sys.stderr.write(f"{program}: {error}\n")
        return EXIT_USAGE
    except (PreceptorError, OSError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return EXIT_ERROR
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        return EXIT_INTERRUPTED


def _help() -> str:
    lines = [f"  {name:<8} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "usage: preceptor COMMAND [@ settings.toml ...] [--option value ...]",
            "",
            "commands:",
            *lines,
            "",
            "'preceptor COMMAND --help' lists the options of a command; 'preceptor --version' prints the version.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
