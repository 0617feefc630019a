"""The commands beside training: `python -m PACKAGE COMMAND`, or `python -m PACKAGE COMMAND --help`.

Exit status: 0 done, 1 failed, 2 bad input (one sentence on stderr, nothing written), 75 stopped by a signal with
finished work kept.
"""

import sys

from lightning_shards import cli

from .data import fields, transform


def model() -> type:
    """The class that a run's weights belong to; imported by the commands that need it."""
    from .model import ImageModel

    return ImageModel


def main() -> int:
    """Run the command that the arguments name; returns the exit status."""
    return cli.main(f"python -m {__package__}", model=model, fields=fields, transform=transform)


if __name__ == "__main__":
    sys.exit(main())
