"""`dataset.json`: what a packed dataset holds. Everything after `pack` starts here.

    {"format": "lightning-shards/1", "task": "single_label", "targets": ["ankle boot", ...],
     "splits": {"train": [{"name": "train/000000.tar", "samples": 1250, "bytes": 2570240, "sha256": "..."}]},
     "packed": {...how...}, "fingerprint": "..."}

Sample ids count through a split's shards in the order of this file: the first sample of the first shard is 0.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError

FORMAT = "lightning-shards/1"
TASKS = ("single_label", "multi_label", "regression")


@dataclass(frozen=True)
class Shard:
    """One tar of a split: its path below the dataset's root, number of samples, size in bytes and SHA-256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A dataset as `dataset.json` describes it.

    Attributes:
        root: the folder that holds `dataset.json`.
        task: what the targets are: `single_label` (field `cls`, a class number), `multi_label` (field `json`,
            `{"labels": [class numbers]}`) or `regression` (field `json`, `{"targets": [numbers]}`).
        targets: class names, or the names of the numbers.
        splits: the shards of each split.
        packed: how it was made, for people.
    """

    root: Path
    task: str
    targets: Sequence[str]
    splits: Mapping[str, Sequence[Shard]]
    packed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which sample has which id and what is in it."""
        lines = [
            f"{split} {s.name} {s.samples} {s.bytes} {s.sha256}"
            for split, shards in self.splits.items()
            for s in shards
        ]
        return hashlib.sha256("\n".join([self.task, *self.targets, *lines]).encode()).hexdigest()[:16]

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits[split])

    def save(self) -> None:
        """Write `dataset.json`: fsynced under a temporary name, then renamed, then the folder fsynced."""
        content = {
            "format": FORMAT,
            "task": self.task,
            "targets": list(self.targets),
            "splits": {split: [asdict(shard) for shard in shards] for split, shards in self.splits.items()},
            "packed": dict(self.packed),
            "fingerprint": self.fingerprint,
        }
        write_durably(self.root / "dataset.json", json.dumps(content, indent=1, ensure_ascii=False).encode())

    @classmethod
    def open(cls, root: Path | str) -> Dataset:
        """Read `root/dataset.json`. Raises InputError where it is missing, damaged or of another version."""
        root = Path(root)
        path = root / "dataset.json"
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise InputError(
                    f"{path} has format {content['format']!r}, this version reads {FORMAT!r}: pack it again"
                )
            splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
            dataset = cls(root, content["task"], content["targets"], splits, content["packed"])
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{root} is no packed dataset (no dataset.json): make it with `pack SOURCE {root}`"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is damaged ({error}): pack the dataset again") from None
        if dataset.task not in TASKS or any(
            Path(s.name).is_absolute() or ".." in Path(s.name).parts for x in splits.values() for s in x
        ):
            raise InputError(f"{path} is damaged: unknown task, or a shard outside the dataset's folder")
        if dataset.fingerprint != content.get("fingerprint"):
            raise InputError(f"{path} was changed after packing: its fingerprint does not fit; pack the dataset again")
        return dataset


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write `path` so that after a kill or a power cut there is the old file or the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)
