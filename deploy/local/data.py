"""Writes the demo's examples: capitals of countries, with five solved questions before the teacher's own prompt."""

from __future__ import annotations

import csv
import json
from pathlib import Path

TABLE = Path(__file__).with_name("capitals.csv")
Message = dict[str, str]


def write_examples(folder: Path) -> None:
    """Writes train.jsonl (40 questions) and heldout.jsonl (19 others)."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    shots = [
        message
        for row in rows
        if row["split"] == "shot"
        for message in (_question(row["country"]), {"role": "assistant", "content": f"{row['capital']}."})
    ]
    for split in ("train", "heldout"):
        lines = [_example(row, shots) for row in rows if row["split"] == split]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _example(row: dict[str, str], shots: list[Message]) -> str:
    question = _question(row["country"])
    example = {"prompt": [question], "teacher_prompt": [*shots, question], "answer": row["capital"]}
    return json.dumps(example, ensure_ascii=False)


def _question(country: str) -> Message:
    return {"role": "user", "content": f"What is the capital of {country}?"}
