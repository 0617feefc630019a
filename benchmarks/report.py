"""The tables and the picture of docs/performance.md, from the figures of loaders.py.

python benchmarks/report.py build/loaders.json [MORE.json]    # docs/results/, docs/loaders.svg, docs/performance.md
python benchmarks/report.py build/doors.json --block doors     # the same for loaders.py --doors, without a picture

Cases of several runs on one machine are put together; the figures are kept in docs/results/loaders.json.
"""

from __future__ import annotations

import argparse
import json
import re
from html import escape
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMNS = (
    "| loader | images/s, median | min to max | a core | a CPU-second | ours is | memory, MB | pixel error"
    " | decoder | resize |"
)
TITLES = {
    "500": "photos of 500 x 375 pixels",
    "256short": "packed at a shorter side of 256 pixels",
    "256long": "packed at a longer side of 256 pixels",
    "28": "squares of 28 pixels, PNG",
    "32": "squares of 32 pixels, PNG",
    "64": "squares of 64 pixels, JPEG",
    "64png": "squares of 64 pixels, PNG",
}
BAR, LEFT, WIDTH = 22, 230, 820  # of the picture: height of a line, where bars begin, all of it


def table(case: dict[str, Any]) -> str:
    """One case as a Markdown table, the fastest first, with what is no part of it below."""
    lines = [f"### {case['case']}: {TITLES[case['case']]}", ""]
    lines += [
        f"{case['images']:,} files of {case['bytes_per_image'] / 1000:.1f} KB, crops of {case['size']} pixels.",
        "",
    ]
    errors = {name: f"{error:.2f}" for name, error in case["pixel_error"].items() if isinstance(error, float)}
    if "rows" in case:
        lines += [COLUMNS, re.sub("[^|]+", "---", COLUMNS)]
    for row in sorted(case.get("rows", []), key=lambda row: -row["median"]):
        times = "{:.2f} times as fast ({:.2f}-{:.2f})".format(*row["ours_is_times"]) if row["ours_is_times"] else ""
        cells = [
            f"**{row['title']}**" if row["name"] == "ours" else row["title"],
            f"{row['median']:,}",
            f"{row['min']:,}-{row['max']:,}",
            f"{row['per_core']:,}",
            f"{row['per_cpu_second']:,}",
            "" if row["name"] == "ours" else times,
            f"{row['memory_mb']:,}",
            errors.pop(row["name"], ""),
            row["decoder"],
            row["filter"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if errors:
        lines += ["", "Pixel error of " + ", ".join(f"{name} {error}" for name, error in errors.items()) + "."]
    lines += [f"\nNot measured: {name} ({reason})." for name, reason in case.get("missing", {}).items()]
    return "\n".join(lines) + "\n"


def conditions(results: dict[str, Any]) -> str:
    """Machine, versions and how it was measured, as a sentence or two."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    others = max(row["others"] for case in results["cases"] for row in case["rows"])
    rounds = sorted({len(row["rates"]) for case in results["cases"] for row in case["rows"]})
    return (
        f"{machine['cores']} cores of an {machine['processor']}, Python {machine['python']}, {versions}. "
        f"{' or '.join(map(str, rounds))} rounds of {results['seconds']:g} s each; other programs used at most"
        f" {others:.0%} of the machine meanwhile."
    )


def picture(results: dict[str, Any]) -> str:
    """Horizontal bars of images/s, one group a case, as an SVG."""
    parts, y = [], 10
    for case in results["cases"]:
        rows = sorted(case["rows"], key=lambda row: -row["median"])
        longest = rows[0]["median"]
        y += 26
        parts.append(f'<text class="t" x="20" y="{y}" font-weight="600">{escape(TITLES[case["case"]])}</text>')
        y += 8
        for row in rows:
            width = round((WIDTH - LEFT - 80) * row["median"] / longest)
            kind = {"ours": "a", "bare": "c"}.get(row["name"], "b")
            parts.append(
                f'<text class="s" x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(row["title"])}</text>'
            )
            parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y + 3}" width="{width}" height="{BAR - 6}" rx="3"/>')
            parts.append(f'<text class="s" x="{LEFT + width + 8}" y="{y + 15}">{row["median"]:,}</text>')
            y += BAR
    style = ".t { fill: #1b2733 } .s { fill: #5b6875; font-size: 12.5px } "
    style += ".a { fill: #f28e2b } .b { fill: #4e79a7 } .c { fill: #98a2ad }"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 20}" font-family="system-ui, sans-serif"'
    body = "\n  ".join([f'<rect width="{WIDTH}" height="{y + 20}" fill="#ffffff"/>', f"<style>{style}</style>", *parts])
    return f'{head} font-size="14">\n  {body}\n</svg>\n'


def main(figures: list[Path], docs: Path, name: str) -> None:
    results, *others = (json.loads(path.read_text()) for path in figures)
    for other in others:
        if other["machine"] != results["machine"]:
            raise SystemExit("these figures are of different machines or versions: measure them again on one")
        results["cases"] += other["cases"]
    (docs / "results" / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    if name == "loaders":
        (docs / "loaders.svg").write_text(picture(results))
    block = "\n".join([f"<!-- {name} -->", conditions(results), "", *map(table, results["cases"])]) + "<!-- end -->"
    page = docs / "performance.md"
    page.write_text(re.sub(f"<!-- {name} -->.*?<!-- end -->", lambda _: block, page.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, nargs="+", help="what loaders.py wrote")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--block", default="loaders", choices=["loaders", "doors"], help="of docs/performance.md")
    arguments = parser.parse_args()
    main(arguments.figures, arguments.docs, arguments.block)
