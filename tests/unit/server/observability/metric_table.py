"""The table of docs/observability.md, made from the registry. `python -m tests.unit.server.observability.metric_table`
writes it into the document."""

from __future__ import annotations

from pathlib import Path

from preceptor_server.observability.health import Health
from preceptor_server.observability.metrics import Metrics

DOCUMENT = Path(__file__).parents[4] / "docs" / "observability.md"
BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def metric_table() -> str:
    lines = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for family in Metrics(health=Health(), version="1").families:
        labels = ", ".join(f"`{name}`" for name in family.label_names) or "none"
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines)


def with_table(document: str) -> str:
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{metric_table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(with_table(DOCUMENT.read_text()))
