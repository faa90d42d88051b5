"""The demo: a teacher server as its own process, a student that learns from it over gRPC, a table and a report.

`make demo` runs it; `make demo-vllm` the same with the teacher in vLLM. Everything it writes lies in runs/demo, or
runs/demo-vllm; it stops what it started. `--serve` starts the teacher alone, to look into a demo that has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")  # the display below says what goes on
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # teacher and student share the cores: neither may spin

from preceptor.settings import load_settings
from preceptor_client.train.record.summary import RunSummary
from preceptor_client.train.run.config import RunConfig
from rich.console import Console
from rich.table import Table

from deploy.local.data import write_examples
from deploy.local.smollm2 import gguf_folder, saved_folder

HERE = Path(__file__).parent
OUTPUTS = {"hf": Path("runs/demo"), "vllm": Path("runs/demo-vllm")}
SETTINGS = {"hf": HERE / "teacher.toml", "vllm": HERE / "teacher-vllm.toml"}
START_SECONDS = 400
STOP_SECONDS = 30
NUM_SAMPLES = 8
NUM_RECORDED = 100
"""Requests that the teacher keeps to be looked into: the demo's prompts are its own."""
PAGE_PORT = 8080

console = Console()


def main() -> int:
    """Returns 0 when the demo ended well."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="demo", description="A student learns from a teacher over gRPC.")
    parser.add_argument("--engine", choices=OUTPUTS, default="hf", help="what runs the teacher (default: hf)")
    parser.add_argument("--serve", action="store_true", help="start the teacher alone, with its page, until Ctrl-C")
    arguments = parser.parse_args()
    engine = arguments.engine
    output, student = OUTPUTS[engine], str(gguf_folder())
    teacher = student if engine == "hf" else str(saved_folder(Path("runs/models")))
    if arguments.serve:
        return serve(SETTINGS[engine], teacher, output)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    write_examples(output)
    with teacher_server(SETTINGS[engine], teacher, output) as served:
        teacher_words = "SmolLM2-135M-Instruct with five solved examples before its eyes"
        console.print(f"Teacher: {teacher_words}, in {engine}, at {served.address}")
        console.print("Student: the same weights without the examples; 18 steps of 16 answers each")
        console.print(f"Look on: {served.page} in a browser, or preceptor tail {served.page}\n", soft_wrap=True)
        summary = run_training(served.address, student, output)
    seconds = time.monotonic() - started
    print_summary(summary, seconds, output)
    write_summary(summary, seconds, output)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where the teacher is."""

    address: str
    page: str
    """URL of its HTTP side."""


def server_command(settings: Path, model: str) -> list[str]:
    """Starts the teacher; what it records can be looked into."""
    command = [sys.executable, "-m", "preceptor_server.cli", "@", str(settings), "--engine.model", model]
    return [*command, "--http.record", str(NUM_RECORDED)]


def serve(settings: Path, model: str, output: Path) -> int:
    """The teacher alone, until Ctrl-C or SIGTERM, which it takes itself."""
    page = f"http://127.0.0.1:{PAGE_PORT}"
    steps = f"page   {page}\nlinks  preceptor report {output} --page {page}, then open {output}/report.html"
    console.print(steps, soft_wrap=True)
    command = [*server_command(settings, model), "--http.port", str(PAGE_PORT)]
    os.execv(command[0], command)


@contextmanager
def teacher_server(settings: Path, model: str, output: Path) -> Iterator[Served]:
    """Starts preceptor-server on free ports, waits until it answers, stops it at the end."""
    address_file, page_file, log = output / "address", output / "page-address", output / "teacher.log"
    command = server_command(settings, model)
    command += ["--http.port", "0", "--http.address-file", str(page_file), "--listen.address-file", str(address_file)]
    with log.open("wb") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=lines)
    try:
        with console.status("starting the teacher server and checking it against a plain forward"):
            for file in (address_file, page_file):
                wait_for(server, file, log)
        yield Served(address=address_file.read_text(), page=f"http://{page_file.read_text()}")
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait(STOP_SECONDS)


def wait_for(server: subprocess.Popen[bytes], address_file: Path, log: Path) -> None:
    """Returns once the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while not address_file.exists():
        if server.poll() is not None:
            raise SystemExit(f"the teacher server stopped; its log ends:\n{log.read_text()[-2000:]}")
        if time.monotonic() > deadline:
            raise SystemExit(f"the teacher server did not answer within {START_SECONDS} s: see {log}")
        time.sleep(0.1)


def run_training(address: str, model: str, output: Path) -> RunSummary:
    """What `preceptor train @ deploy/local/train.toml --teacher.address ... --student.model ...` does."""
    arguments = ["@", str(HERE / "train.toml"), "--teacher.address", address, "--student.model", model]
    arguments += ["--run.directory", str(output), "--data.train", str(output / "train.jsonl")]
    arguments += ["--data.heldout", str(output / "heldout.jsonl")]
    config = load_settings(RunConfig, arguments, program="demo")
    from preceptor_client.train.run.display import display_for
    from preceptor_client.train.run.train import train

    return train(config, display=display_for(console))


def print_summary(summary: RunSummary, seconds: float, output: Path) -> None:
    """The table before / after / teacher, with sample answers."""
    table = Table(title="Held-out questions: What is the capital of ...?", title_justify="left")
    for name in ("question", "student before", "student after", "teacher"):
        table.add_column(name, max_width=44)
    for sample in summary.samples[:NUM_SAMPLES]:
        table.add_row(
            sample.prompt.removeprefix("user: "),
            mark(sample.before, sample.before_is_correct),
            mark(sample.after, sample.after_is_correct),
            mark(sample.teacher or "", sample.teacher_is_correct),
        )
    table.add_section()
    total = summary.heldout_total
    table.add_row(
        "begin with the capital",
        f"{summary.heldout_before} of {total}",
        f"{summary.heldout_after} of {total}",
        f"{summary.heldout_teacher} of {total}",
        style="bold",
    )
    console.print(table)
    console.print(f"training loss {summary.loss_first:.3f} -> {summary.loss_last:.3f} nats, {seconds:.0f} s in all")
    console.print(f"report  {summary.directory / 'report.html'}\nsummary {output / 'summary.json'}")


def mark(answer: str, is_correct: bool) -> str:
    """An answer, green where it is right."""
    text = answer.strip().replace("[", r"\[").replace("\n", " ")
    return f"[green]{text}[/green]" if is_correct else text


def write_summary(summary: RunSummary, seconds: float, output: Path) -> None:
    """summary.json, for programs."""
    figures = {
        "heldout_before": summary.heldout_before,
        "heldout_after": summary.heldout_after,
        "heldout_teacher": summary.heldout_teacher,
        "heldout_total": summary.heldout_total,
        "loss_first": summary.loss_first,
        "loss_last": summary.loss_last,
        "seconds": round(seconds, 1),
    }
    (output / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
