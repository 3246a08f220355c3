"""Output of `benchmarks.engine.throughput`: floors, ratios, and every entry's share of the floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.engine.roofline import MICRO_STEP_TOKENS, RTX_4090, Floors, Rates

_BUSY = 0.3
"""Share of the floor below which the host limits an entry: the GPU's rates then say nothing about another GPU."""
_FORMAT = "{:<16}{:>6}{:>10}{:>8}{:>9}{:>9}{:>8}{:>9}{:>8}{:>9}{:>9}"
_HEADS = ("entry", "split", "tokens/s", "GiB", "reserved", "x guide", "x TRL", "x Unsl.", "floor", "w. att.", "4090*")


def floors_text(rates: Rates, here: Floors, there: Floors) -> str:
    """Return as text the machine's rates, its floors in tokens/s, and those of a 4090 from its data sheet."""
    lines = [
        f"{rates.name}: {rates.burst_flops / 1e12:.1f} TFLOP/s in a burst, "
        f"{rates.sustained_flops / 1e12:.1f} sustained, {rates.copy_bytes / 1e12:.2f} TB/s copied",
        f"floors in tokens/s{'':<10}{'4 FLOPs/weight':>16}{'sustained':>13}{'+ attention':>13}{'at 2,048':>13}"
        f"{f'bandwidth at {MICRO_STEP_TOKENS:,}':>20}",
    ]
    for name, found in (("here", here), ("4090, a projection", there)):
        lines.append(
            f"{name:<28}{found.arithmetic:>16,.0f}{found.arithmetic_sustained:>13,.0f}{found.with_attention:>13,.0f}"
            f"{found.with_attention_long:>13,.0f}{found.bandwidth:>20,.0f}"
        )
    return "\n".join(lines)


def rows_of(entries: Mapping[str, Mapping[str, Any]], here: Floors, there: Floors) -> dict[str, dict[str, Any]]:
    """Return every entry with its ratios to the others and its shares of the floor; None where one is missing."""
    speeds = {name: found.get("tokens_per_second") for name, found in entries.items()}
    rows = {}
    for name, found in entries.items():
        speed = speeds[name]
        kind = next((kind for kind in ("-2048", "-all") if name.endswith(kind)), "")
        share = _ratio(speed, here.arithmetic)
        attended = here.with_attention_long if kind == "-2048" else here.with_attention
        rows[name] = {
            **found,
            "times_guide": _ratio(speed, None if kind else speeds.get("guide")),
            "times_trl_tuned": _ratio(speed, speeds.get(f"trl-tuned{kind}")),
            "times_unsloth": _ratio(speed, speeds.get(f"unsloth{kind}")),
            "share_of_floor": share,
            "share_with_attention": _ratio(speed, attended),
            "projection_4090": share * there.arithmetic if share is not None and share >= _BUSY else None,
        }
    return rows


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table, one line an entry; a failed entry's line says how it failed."""
    lines = [_FORMAT.format(*_HEADS)]
    for name, row in rows.items():
        lines.append(f"{name:<16}{row['error']}" if "error" in row else _line(name, row))
    note = f"* a projection: share of the floor here times {RTX_4090.name}'s floor, where the GPU is the limit"
    return "\n".join([*lines, note])


def _line(name: str, row: Mapping[str, Any]) -> str:
    times = [f"{value:.2f}" if (value := row[f"times_{key}"]) else "-" for key in ("guide", "trl_tuned", "unsloth")]
    shares = [f"{100 * row[key]:.1f} %" for key in ("share_of_floor", "share_with_attention")]
    memory = [f"{row['peak_allocated_gib']:.1f}", f"{row['peak_reserved_gib']:.1f}"]
    projection = f"{row['projection_4090']:,.0f}" if row["projection_4090"] else "-"
    return _FORMAT.format(name, row["split"], f"{row['tokens_per_second']:,.0f}", *memory, *times, *shares, projection)


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base
