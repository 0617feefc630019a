"""`dataset.json`: what a packed dataset holds. Everything after `pack` starts here.

    {"format": "lightning-shards/1", "task": "single_label", "targets": ["ankle boot", ...],
     "splits": {"train": [{"name": "train/000000.tar", "samples": 1250, "bytes": 2570240, "sha256": "..."}]},
     "packed": {...how...}, "fingerprint": "..."}

Where the samples hold more than an image and a target, "fields" describes each field by its kind, and the format is
"lightning-shards/2", which versions before it refuse.

Sample ids count through a split's shards in the order of this file: the first sample of the first shard is 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_durably
from ..machine import persistently
from .dataset_checks import check_content

FORMAT = "lightning-shards/1"
WITH_FIELDS = "lightning-shards/2"
TASKS = ("single_label", "multi_label", "regression", "segmentation", "detection")
TARGET_FIELDS = {"segmentation": "mask", "detection": "boxes"}  # of the other tasks it is called `target`


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
        root: the folder or URL of the shards: where `dataset.json` lies, or what it names as `shards_at`.
        task: what the targets are: `single_label` (field `cls`, a class number), `multi_label` (field `json`,
            `{"labels": [class numbers]}`), `regression` (field `json`, `{"targets": [numbers]}`), `segmentation`
            (field `mask`, a PNG with a class number for each pixel) or `detection` (field `boxes`, JSON with boxes and
            their class numbers).
        targets: class names, or the names of the numbers.
        splits: the shards of each split.
        packed: how it was made, for people.
        fields: name -> description of each field (`Field.describe`); empty: an image, and the target of `task`. Only
            where there are any, `task` may be empty.
    """

    root: Path | str
    task: str
    targets: Sequence[str]
    splits: Mapping[str, Sequence[Shard]]
    packed: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which sample has which id and what is in it."""
        lines = [
            f"{split} {s.name} {s.samples} {s.bytes} {s.sha256}"
            for split, shards in self.splits.items()
            for s in shards
        ]
        if self.fields:
            lines.append(json.dumps(self.fields, sort_keys=True))
        return hashlib.sha256("\n".join([self.task, *self.targets, *lines]).encode()).hexdigest()[:16]

    @property
    def target_field(self) -> str:
        """The name of the field that is predicted."""
        return TARGET_FIELDS.get(self.task, "target")

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits[split])

    def parts(self, split: str) -> Sequence[tuple[Dataset, Sequence[Shard]]]:
        """Where the shards of a split lie, in their order: (a dataset with that root, its shards)."""
        return ((self, self.splits[split]),)

    def save(self, folder: Path | None = None) -> None:
        """Write `dataset.json` beside the shards, or into another `folder`; durably, and all of it or nothing."""
        content = {
            "format": WITH_FIELDS if self.fields else FORMAT,
            "task": self.task,
            "targets": list(self.targets),
            **({"fields": {name: dict(about) for name, about in self.fields.items()}} if self.fields else {}),
            "splits": {split: [asdict(shard) for shard in shards] for split, shards in self.splits.items()},
            "packed": dict(self.packed),
            "fingerprint": self.fingerprint,
            **({"shards_at": str(self.root)} if folder else {}),
        }
        write_durably(
            (folder or Path(self.root)) / "dataset.json", json.dumps(content, indent=1, ensure_ascii=False).encode()
        )

    @classmethod
    def open(cls, root: Path | str) -> Dataset:
        """Read `dataset.json` in a folder. Raises InputError where it is missing, damaged or of another version."""
        try:
            text = persistently((Path(root) / "dataset.json").read_bytes)
        except (FileNotFoundError, NotADirectoryError):
            why = f"{root} is no packed dataset (no dataset.json): make it with `pack SOURCE {root}`"
            raise InputError(why) from None
        except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
            raise InputError(
                f"{root}/dataset.json cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from None
        return cls.parse(text, Path(root))

    @classmethod
    def parse(cls, text: bytes, root: Path | str) -> Dataset:
        """The dataset at `root` (a folder or a URL) with this `dataset.json`. Raises InputError for another text."""
        path = f"{root}/dataset.json"
        try:
            content = json.loads(text)
            if isinstance(content, dict) and content.get("format") not in (FORMAT, WITH_FIELDS):
                found = str(content.get("format"))[:80]
                wrong = f"{path} has format {found!r}, this version reads {WITH_FIELDS!r}: pack it again"
                raise InputError(wrong)
            check_content(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({str(error)[:300]}): pack the dataset again") from None
        splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
        if isinstance(root, Path) and (place := content.get("shards_at")):  # never out of a file from elsewhere
            root = place if "://" in place else Path(place)
        fields = content.get("fields", {}) if content["format"] == WITH_FIELDS else {}
        dataset = cls(root, content["task"], content["targets"], splits, content["packed"], fields)
        if dataset.task not in TASKS and (dataset.task or not fields):
            raise InputError(f"{path} is damaged: there is no task {dataset.task[:80]!r}")
        if dataset.fingerprint != content.get("fingerprint"):
            raise InputError(f"{path} was changed after packing: its fingerprint does not fit; pack the dataset again")
        return dataset
