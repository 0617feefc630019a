"""Write the list of how-to pages into the README of their folder, each by its headline; `make format` does it."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def index(folder: Path) -> str:
    """The README as it should be."""
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    titles = [path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for path in pages]
    rows = "".join(f"- [{title}]({path.name})\n" for title, path in sorted(zip(titles, pages, strict=True)))
    readme = (folder / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(?<=<!-- pages -->\n).*?(?=<!-- end -->)", rows, readme, flags=re.DOTALL)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "README.md").write_text(index(place), encoding="utf-8")
