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
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..yaml_text import BeyondMeasure, parse_yaml, read_yaml

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
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings")
    return content


def check_names(content: Any, source: Path | str, team: str) -> None:
    """The same for settings from elsewhere, such as a checkpoint, or from the command line of a run that begins: what
    its own resume would refuse must not begin."""
    for setting, text in _texts(content, "", [_MOST_FILES]):
        if setting not in _PLAIN and _DOTTED.fullmatch(text.strip()):
            _check_name(text.strip(), f"{source}: {setting}", team.partition(".")[0])


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
        place: Path | None = None
        if "\0" not in value and len(value) < 1024 and Path(value).is_file():
            if not files[0]:
                raise InputError(f"{setting} names {value}, and settings may name no more than {_MOST_FILES} files")
            files[0] -= 1
            place = Path(value)
        for inner in (_parsed(place, setting), _parsed(value, setting)):
            yield from _texts(inner, setting, files)


def _parsed(source: Path | str | None, setting: str) -> Any:
    """The values of YAML in a file or in a text, for the parser would read it too; None where there is none.

    Raises InputError where there is too much of it to look through.
    """
    try:
        if isinstance(source, str):
            found = parse_yaml(source) if _STRUCTURE.search(source) else None
            return None if isinstance(found, str) else found
        return source and read_yaml(source)
    except BeyondMeasure as error:
        raise InputError(f"{setting} holds or names YAML that is not looked through: {error}") from None
    except (ValueError, OSError):
        return None


def _check_name(name: str, setting: str, team: str) -> None:
    root, why = name.partition(".")[0], ""
    if not _is_there(root):
        return  # a text like any other: there is nothing to import
    if not _may_import(root, team):
        why = "is of neither"
    elif (found := _imported(name)) is None:
        return
    elif not inspect.isclass(found):
        why = "is no class"
    elif not _may_import(found.__module__.partition(".")[0], team):
        why = f"comes from {found.__module__}"
    if why:
        raise InputError(
            f"{setting} names {name}: a run's config may name nothing but classes of installed packages and of {team},"
            f" and this {why}; train.py may give any other to TrainingCLI(callbacks=[...])"
        )


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
