"""The results for people: a table per workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.teacher.outcome import STAGES
from bench.teacher.results import Cell, Measurement
from bench.teacher.summary import PEER, Attainable, Row
from bench.teacher.ways import DESCRIPTIONS
from bench.teacher.workloads import Shape

GIB = 1 << 30
COLUMNS = ("K", "way", "positions/s", "slowest-fastest", f"x {PEER}", "p50 s", "p95 s", "B/position", "peak GiB")


def print_tables(
    console: Console, rows: Sequence[Row], *, shapes: Mapping[str, Shape], attainables: Mapping[str, Attainable]
) -> None:
    """Medians over the rounds."""
    for workload, shape in shapes.items():
        mine = [row for row in rows if row.workload == workload]
        if not mine:
            continue
        table = Table(title=f"{workload}: {describe(shape)}", title_justify="left", caption_justify="left")
        if workload in attainables:
            one = attainables[workload]
            table.caption = (
                f"The bare forward ran {one.tokens_per_second:.0f} tokens/s: with what is shared computed once, and "
                f"no head, {one.positions_per_second:.0f} positions/s."
            )
        for column in (*COLUMNS, "/".join(STAGES)):
            table.add_column(column, justify="left" if column == "way" else "right")
        for row in sorted(mine, key=lambda row: (row.top_k or 0, list(DESCRIPTIONS).index(row.way))):
            table.add_row(*cells_of(row))
        console.print(table)
    for way in dict.fromkeys(row.way for row in rows):
        console.print(f"{way:12} {DESCRIPTIONS[way]}", highlight=False)


def describe(shape: Shape) -> str:
    """In words."""
    shared = f"{shape.num_shared:,} shared, " if shape.num_shared else ""
    groups = f"{shape.num_groups} groups of {shape.num_responses}" if shape.num_responses > 1 else shape.num_groups
    return f"{shared}{groups} x ({shape.num_prompt} prompt + {shape.num_response} response)"


def cells_of(row: Row) -> list[str]:
    """As text, "-" where there is none."""
    return [
        "-" if row.top_k is None else str(row.top_k),
        row.way,
        f"{row.positions_per_second:.1f}",
        f"{row.slowest_positions_per_second:.1f}-{row.fastest_positions_per_second:.1f}",
        "-" if row.times_peer is None else f"{row.times_peer:.2f}",
        f"{row.latency_p50_seconds:.2f}",
        f"{row.latency_p95_seconds:.2f}",
        "-" if row.bytes_per_position is None else f"{row.bytes_per_position:.0f}",
        f"{row.peak_bytes / GIB:.2f}",
        "-" if row.stage_shares is None else "/".join(f"{row.stage_shares[stage]:.0%}" for stage in STAGES),
    ]


def print_cell(console: Console, cell: Cell, measurement: Measurement) -> None:
    """One line as soon as it is known."""
    console.print(
        f"round {cell.round_index} {cell.workload} K={cell.top_k or '-'} {cell.way:12}"
        f"{measurement.positions_per_second:8.1f} positions/s {measurement.outcome.seconds:7.1f} s",
        highlight=False,
    )
