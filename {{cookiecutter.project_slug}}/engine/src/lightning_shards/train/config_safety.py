"""What the config of a run may name: a run's folder is data, also one that somebody else has made.

A `class_path`, and any other text that the parser could take for the name of something to import, must be a class of an
installed package or of the team's own. Functions are refused, since the parser would hand them over to be called, and
so is whatever would be imported from `runs/`, from a dataset, or from another folder below the current one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..yaml_text import parse_yaml

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_STRUCTURE = re.compile(r"[\[{:\-!&\n]")  # of a text that may be YAML itself
_PLAIN = ("data.path", "data.cache", "log.project", "log.entity", "prices")  # texts, whatever they look like
_SECTIONS = ("data", "log", "model", "trainer")
_MOST_FILES = 100


def check_config(path: Path, team: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in the `config.yaml` of a run. Raises InputError, before anything is called, where it names what it
    may not.

    Args:
        path: the file.
        team: the name of a module in the team's package.
        without: names of settings that are left out.
    """
    content = read_settings(path)
    for section, _, name in (setting.partition(".") for setting in without):
        if isinstance(content.get(section), dict):
            content[section].pop(name, None)
    for name in ("config", *_SECTIONS):
        if name in content and (name == "config" or not isinstance(content[name], (dict, type(None)))):
            raise InputError(f"{path}: {name} must not be another file")
    check_names(content, path, team)
    return content


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file as plain values. Raises InputError where there are none."""
    try:
        content = parse_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings")
    return content


def check_names(content: Any, path: Path, team: str) -> None:
    """The same for settings that were found in the file `path`, such as a checkpoint."""
    for setting, text in _texts(content, "", [_MOST_FILES]):
        if setting not in _PLAIN and _DOTTED.fullmatch(text.strip()):
            _check_name(text.strip(), setting, path, team.partition(".")[0])


def check_functions(content: Any, section: str) -> None:
    """Raise InputError where a setting of the section names a function: a run with it in its config could not go on."""
    for setting, text in _texts(content.get(section), section, [0]):
        name = text.strip()
        if not _DOTTED.fullmatch(name) or not _is_there(name.partition(".")[0]):
            continue
        if (found := _imported(name)) is not None and callable(found) and not inspect.isclass(found):
            raise InputError(
                f"{setting} names {name}, a function, which a run's config may not: write a class that calls it, or"
                " give the callback in train.py, to TrainingCLI(callbacks=[...])"
            )


def _texts(value: Any, setting: str, files: list[int]) -> Iterator[tuple[str, str]]:
    """(setting, text) of all texts, with those in texts that are YAML themselves, and in the files that they name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, f"{setting}.{key}".lstrip("."), files)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _texts(inner, setting, files)
    elif isinstance(value, str):
        yield setting, value
        if setting in _PLAIN:
            return
        if files[0] and "\0" not in value and len(value) < 1024 and Path(value).is_file():
            files[0] -= 1
            with suppress(ValueError, OSError):
                yield from _texts(parse_yaml(Path(value).read_bytes()), setting, files)
        with suppress(ValueError, OSError):
            inner = parse_yaml(value) if _STRUCTURE.search(value) else value
            if not isinstance(inner, str):
                yield from _texts(inner, setting, files)


def _check_name(name: str, setting: str, path: Path, team: str) -> None:
    where = f"{path}: {setting} names {name}, which"
    root = name.partition(".")[0]
    if not _is_there(root):
        return  # a text like any other: there is nothing to import
    if not _may_import(root, team):
        raise InputError(f"{where} is of no installed package and not of {team}: a run's config may name no other code")
    found = _imported(name)
    if found is None:
        return
    if not inspect.isclass(found):
        raise InputError(f"{where} is no class: a run's config may name no functions")
    if not _may_import(found.__module__.partition(".")[0], team):
        raise InputError(f"{where} comes from {found.__module__}: a run's config may name no such class")


def _is_there(root: str) -> bool:
    try:
        return root in sys.modules or importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return True


def _may_import(root: str, team: str) -> bool:
    """Whether a package is installed, or the team's, judged by where it lies; it is not imported for that."""
    if root in (team, __name__.partition(".")[0]):
        return True
    if root in sys.stdlib_module_names:
        return False
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ()) or [spec.origin or ""]
    return all(_is_installed(Path(place).absolute()) for place in places)


def _is_installed(place: Path) -> bool:
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    folders.add(site.getusersitepackages())
    if any(place.is_relative_to(folder) for folder in folders):
        return True
    return not place.is_relative_to(Path.cwd()) and not place.is_relative_to(Path(sys.argv[0]).absolute().parent)


def _imported(name: str) -> Any:
    """What the dotted name stands for; None where there is no such thing."""
    module, _, rest = name.rpartition(".")
    while module:
        try:
            found: Any = importlib.import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
            continue
        for part in rest.split("."):
            found = getattr(found, part, None)
        return found
    return None
