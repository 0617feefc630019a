"""The commands that need no model: `python -m lightning_shards COMMAND`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(f"python -m {__package__}"))
