"""Tables and the picture of docs/performance.md, from the figures of loaders.py."""

from __future__ import annotations

from typing import Any


def table(case: dict[str, Any]) -> str:
    """One case as a Markdown table, the fastest first, with those that could not run below."""
    head = f"{case['images']:,} files of {case['bytes_per_image'] / 1000:.1f} KB, crops of {case['size']} pixels"
    columns = "loader|images/s, median|min to max|a core|a CPU-second|ours is|memory, MB|decoder|resize".split("|")
    lines = [f"### {case['case']}: {head}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in sorted(case["rows"], key=lambda row: -row["median"]):
        times = "{:.2f}x ({:.2f}-{:.2f})".format(*row["ours_is_times"]) if row["ours_is_times"] else "-"
        cells = [
            f"**{row['title']}**" if row["name"] == "ours" else row["title"],
            f"{row['median']:,}",
            f"{row['min']:,}-{row['max']:,}",
            f"{row['per_core']:,}",
            f"{row['per_cpu_second']:,}",
            "1" if row["name"] == "ours" else times,
            f"{row['memory_mb']:,}",
            row["decoder"],
            row["filter"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nNot measured: {name} ({reason})" for name, reason in case["missing"].items()]
    return "\n".join(lines) + "\n"
