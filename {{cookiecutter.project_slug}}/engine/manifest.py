"""Which files of engine/ were changed: `make lint` says it, before an update replaces them.

python engine/manifest.py          # compares with MANIFEST; status 1 where something differs
python engine/manifest.py write    # what is there now is as it should be
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
MANIFEST = FOLDER / "MANIFEST"


def digests() -> dict[str, str]:
    """Checksums of the files of engine/, by their paths in it; without what tools make."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        parts = path.relative_to(FOLDER).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and path != MANIFEST and not hidden:
            found["/".join(parts)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def write() -> None:
    MANIFEST.write_text("".join(f"{digest}  {name}\n" for name, digest in digests().items()))


def edited() -> list[str]:
    """Files that were changed, added or removed since they came."""
    if not MANIFEST.exists():
        return []
    lines = (line.split("  ", 1) for line in MANIFEST.read_text().splitlines())
    before, now = {name: digest for digest, name in lines}, digests()
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def main() -> int:
    if sys.argv[1:] == ["write"]:
        write()
    elif names := edited():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(
            f"engine/{names[0]}{more} was changed, and `make update` would replace it: put the change into src/ "
            "(engine/docs/how-to), or keep it with `python engine/manifest.py write`",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
