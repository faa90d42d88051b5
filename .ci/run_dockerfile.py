"""Runs the steps of the Dockerfile in a temporary folder and a fresh virtual environment, where no Docker engine is.

COPY copies into the folder, RUN runs in it with the environment's own pip, ENV sets, USER and EXPOSE are only read
(there is no second user and no network namespace here). At the end the ENTRYPOINT must answer --help and serve its fake
engine.
Usage: python3 .ci/run_dockerfile.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
READ_ONLY = {"FROM", "WORKDIR", "USER", "EXPOSE"}
HOST_ONLY_COMMANDS = ("useradd",)
START_SECONDS = 60


def main() -> int:
    """Returns 0 when every step and the entrypoint worked."""
    with tempfile.TemporaryDirectory(prefix="preceptor-docker-") as name:
        work = Path(name) / "app"
        work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", f"{name}/venv"], check=True)
        environment = {**os.environ, "PATH": f"{name}/venv/bin:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
        entrypoint: list[str] = []
        for instruction, argument in instructions(REPOSITORY / "Dockerfile"):
            sys.stdout.write(f"{instruction} {argument}\n")
            sys.stdout.flush()
            if instruction == "COPY":
                copy(argument, work)
            elif instruction == "RUN" and not argument.startswith(HOST_ONLY_COMMANDS):
                subprocess.run(["sh", "-c", argument], cwd=work, env=environment, check=True, stdout=subprocess.DEVNULL)
            elif instruction == "ENV":
                environment.update(pair.split("=", 1) for pair in argument.split())
            elif instruction == "ENTRYPOINT":
                entrypoint = json.loads(argument)
            elif instruction not in READ_ONLY | {"RUN"}:
                raise SystemExit(f"Dockerfile: {instruction} is unknown to this script")
        serve_once(entrypoint, work, environment)
    sys.stdout.write("Dockerfile: every step ran and the entrypoint serves\n")
    return 0


def instructions(path: Path) -> list[tuple[str, str]]:
    """The Dockerfile's instructions, without comments."""
    lines = (line.strip() for line in path.read_text().replace("\\\n", " ").splitlines())
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line and not line.startswith("#")]


def copy(argument: str, work: Path) -> None:
    """COPY with relative sources and one destination."""
    *sources, destination = argument.split()
    for source in sources:
        origin = REPOSITORY / source
        if origin.is_dir():
            shutil.copytree(origin, work / destination, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, work / destination)


def serve_once(entrypoint: list[str], work: Path, environment: dict[str, str]) -> None:
    """Starts the entrypoint with the fake engine on a port of the kernel's choice, waits for it, ends it. As the image
    is, reachable from elsewhere without keys and TLS, it must refuse to start."""
    subprocess.run([*entrypoint, "--help"], env=environment, cwd=work, check=True, stdout=subprocess.DEVNULL)
    address_file = work / "address"
    shutil.copy(REPOSITORY / "tests" / "engines" / "fake.py", work)
    arguments = [*entrypoint, "--engine.kind", "fake:FakeEngine", "--listen.port", "0"]
    bare = subprocess.run(arguments, env=environment, cwd=work, capture_output=True, text=True, timeout=START_SECONDS)
    if bare.returncode != 2 or "has neither keys nor TLS" not in bare.stderr:
        raise SystemExit(f"Dockerfile: the image serves everybody, or fails otherwise: {bare.stderr}")
    arguments += ["--listen.host", "127.0.0.1", "--listen.address-file", str(address_file)]
    server = subprocess.Popen(arguments, env=environment, cwd=work)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not address_file.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("Dockerfile: the entrypoint did not start to serve")
            time.sleep(0.1)
    finally:
        server.terminate()
        code = server.wait(START_SECONDS)
    if code != 0:
        raise SystemExit(f"Dockerfile: the entrypoint ended with {code} after SIGTERM")


if __name__ == "__main__":
    sys.exit(main())
