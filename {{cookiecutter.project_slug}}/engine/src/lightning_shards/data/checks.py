"""One sentence for a setting outside its range, the same for the loader and for the datamodule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from ..errors import InputError


def _side(crop: Any) -> Any:
    """Of a Crop, or the number itself."""
    return getattr(crop, "size", crop)


Rule = tuple[str, Callable[[Any], bool]]
_RULES: dict[str, Rule] = {
    "global_batch_size micro_batch_size batch_size accumulation repeats workers window_samples window_bytes"
    " cache_bytes": (
        "a whole number, at least 1",
        lambda x: isinstance(x, Integral) and int(x) >= 1,
    ),
    "decoded_bytes": ("a whole number, at least 0", lambda x: isinstance(x, Integral) and int(x) >= 0),
    "image_size crop": ("at least 8", lambda x: _side(x) >= 8),
    "seed": ("a whole number, at least 0", lambda x: isinstance(x, Integral) and int(x) >= 0),
    "fraction eval_crop": ("above 0 and at most 1", lambda x: 0 < float(x) <= 1),
    "flip max_skipped_fraction": ("between 0 and 1", lambda x: 0 <= x <= 1),
    "crop_scale": ("two numbers above 0 and at most 1, the smaller first", lambda x: 0 < x[0] <= x[1] <= 1),
    "crop_ratio": ("two numbers from 0.1 to 10, the smaller first", lambda x: 0.1 <= x[0] <= x[1] <= 10),
}
_RULE_OF = {name: rule for names, rule in _RULES.items() for name in names.split()}


def check_settings(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Raise InputError for the first of `settings` whose value is outside its range. None is always right, and so is
    a name without a rule. The sentence has `prefix` before the name; with "--", as an option is written.
    """
    for name, value in settings.items():
        if value is None or name not in _RULE_OF:
            continue
        rule, holds = _RULE_OF[name]
        try:
            right = holds(value)
        except (TypeError, ValueError, IndexError):
            right = False
        if not right:
            shown = name.replace("_", "-") if prefix == "--" else name
            raise InputError(f"{prefix}{shown} is {value!r}, it must be {rule}")


def refuse_unknown(of: type, unknown: Mapping[str, Any]) -> None:
    """Raise InputError for keyword arguments that the constructor of `of` does not know."""
    if unknown:
        known = [name for name in inspect.signature(of).parameters if name not in ("self", "unknown")]
        raise InputError(f"{of.__name__} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
