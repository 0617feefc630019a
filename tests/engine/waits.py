"""Where the host waits for the device: what CUDA tells of it, or the operations that would wait there."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import lightning_shards
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = Path(lightning_shards.__file__).parent
HOST = str(PACKAGE / "data")  # works on tensors that are the host's
READS = (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.__array__)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique", "_unique2", "unique_dim")


class Waits:
    """Notes where the host waited, by the step in which it was. Only code of the engine, of Lightning and of the team's
    `folders` counts."""

    def __init__(self, *folders: Path) -> None:
        self.step = -1
        self._rooms = (*map(str, folders), str(PACKAGE), str(Path(lightning.__file__).parent))
        self.found: dict[int, list[str]] = defaultdict(list)

    def note(self, what: str) -> None:
        frame, places = sys._getframe(1), []
        while frame is not None:
            places.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]
        if any(path.startswith(HOST) for path, _ in places):
            return
        path, line = next((place for place in places if place[0].startswith(self._rooms)), places[1])
        self.found[self.step].append(f"{what} at {path}:{line}")

    @contextmanager
    def watching(self, device: str) -> Iterator[Waits]:
        with ExitStack() as stack:
            if device == "cuda":
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("always")
                warnings.showwarning = lambda message, *_, **__: (
                    self.note("a wait") if "synchronizing CUDA operation" in str(message) else None
                )
                stack.callback(torch.cuda.set_sync_debug_mode, "default")
                torch.cuda.set_sync_debug_mode("warn")
            else:
                stack.enter_context(_Operations(self.note))
                stack.enter_context(_Reads(self.note))
            yield self


class _Operations(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITS or masked:
            self.note(name)
        return func(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            self.note(func.__name__)
        return func(*args, **(kwargs or {}))
