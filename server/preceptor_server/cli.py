"""The command `preceptor-server`: reads settings, serves, and says in one line why it could not."""

from __future__ import annotations

import asyncio
import os
import sys

from preceptor.settings import InvalidSettingsError, load_settings

from preceptor_server.config import ServerConfig
from preceptor_server.errors import EngineUnavailableError, StartupError

PROGRAM = "preceptor-server"


def main(arguments: list[str] | None = None) -> int:
    """`preceptor-server [@ settings.toml ...] [--engine.model FOLDER]`: 2 = wrong settings, 1 = it cannot start.
    `preceptor-server keys ...` makes, lists and revokes keys of callers."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["keys"]:
        from preceptor_server.tenants.command import run

        return run(arguments[1:])
    try:
        config = load_settings(ServerConfig, arguments, program=PROGRAM)
    except InvalidSettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2

    # Idle OpenMP threads would spin: beside another process on the same cores both become several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Only now: torch and transformers take seconds, and a wrong setting should be told at once.
    from preceptor_server.app import serve
    from preceptor_server.observability.logs import set_up_logging

    observe = config.observe
    set_up_logging(config.log_level, log_format=observe.log_format, log_prompts=observe.log_prompts)
    try:
        asyncio.run(serve(config, reload=lambda: load_settings(ServerConfig, arguments, program=PROGRAM)))
    except (StartupError, EngineUnavailableError) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
