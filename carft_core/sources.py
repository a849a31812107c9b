"""Which source files stand behind an algorithm or a family: those whose edit makes another run."""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from carft_core.errors import RequestError

CORE = Path(__file__).parent
FAMILIES = "carft_core.data."
PRODUCT = frozenset({"carft_core", "sweeps", "tracking"})
NOT_TRAINING = frozenset(
    f"carft_core.{name}"
    for name in (
        *("config", "config_types", "contracts", "errors", "registry", "template_sets"),
        *("user_cache", "validation_errors"),
        "data.augmentation",  # what one does stands in the identity itself
    )
)


class Source(NamedTuple):
    """A module and the file that it is."""

    module: str
    file: Path


def sources_behind(thing: type | Callable[..., object]) -> set[Path]:
    """The file that defines a class or function, those of its base classes, and what they draw on.

    A file of the product draws on the files of the product that its names come from. A user's
    file draws on what it imports of the user's own (its package, and whatever is not installed),
    and so on from there, and on the files of the product that it imports. Raises RequestError for
    what no file defines.
    """
    found: set[Path] = set()
    for part in inspect.getmro(thing) if isinstance(thing, type) else (thing,):
        top = _top(part.__module__)
        if top not in {CORE.name, _top(thing.__module__)} and _own_folder(top) is None:
            continue  # pydantic's, or Python's
        home = inspect.getmodule(part)
        file = getattr(home, "__file__", None)
        if home is None or file is None:
            raise RequestError(
                f"{part.__qualname__} is defined in no file; since its source is a part of what "
                "its runs are known by, put it into a module"
            )
        if top == CORE.name:
            found |= _behind_the_products(home)
        else:
            found |= _behind_a_users(Source(home.__name__, Path(file)))
    return found


def module_place(top: str) -> Path | None:
    """The file, or the package's folder, of a module by its first name; None when there is none.

    A module without a file, such as `sys`, gives a path that is not absolute.
    """
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # loaded without a specification, as `__main__` is
        return Path(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin or top)


def _behind_the_products(home: ModuleType) -> set[Path]:
    """A family draws on others of its kind, and so on what these draw on."""
    found = {home.__name__: Path(str(home.__file__))}
    waiting = [home]
    while waiting:
        module = waiting.pop()
        for name in _drawn_on(module) - found.keys():
            file = getattr(sys.modules.get(name), "__file__", None)
            if file is None:
                continue
            found[name] = Path(file)
            if name.startswith(FAMILIES):
                waiting.append(sys.modules[name])
    return set(found.values())


def _drawn_on(module: ModuleType) -> set[str]:
    """The modules of the product that train and that a module has names of."""
    names = {getattr(value, "__module__", None) or "" for value in vars(module).values()}
    names |= {value.__name__ for value in vars(module).values() if isinstance(value, ModuleType)}
    return {name for name in names if _top(name) == CORE.name} - NOT_TRAINING


@functools.cache
def _behind_a_users(first: Source) -> frozenset[Path]:
    """By import statements, not by what is loaded: a constant tells no module, and an import in a
    function may not have happened yet, while in another process it has."""
    found = {first}
    waiting = [first]
    while waiting:
        source = waiting.pop()
        for name in _imported(source):
            drawn = _source_of(name, _top(source.module))
            if drawn is None or drawn in found:
                continue
            found.add(drawn)
            if _top(drawn.module) != CORE.name:
                waiting.append(drawn)
    return frozenset(source.file for source in found)


def _imported(source: Source) -> Iterator[str]:
    """What its statements import: modules, and names in modules, dotted from the first part on."""
    try:
        tree = ast.parse(source.file.read_bytes())
    except (SyntaxError, ValueError):  # a compiled module; its content counts all the same
        return
    package = source.module
    if source.file.name != "__init__.py":
        package = package.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _source_of(name: str, own: str) -> Source | None:
    """The module that a dotted name is, or lies in; None when it is neither the user's nor one
    of the product's that trains. `own` is the first name of the user's package."""
    top = _top(name)
    if top in PRODUCT:
        source = _in_folder(name, CORE.parent)
        trains = top == CORE.name and source is not None and source.file.name != "__init__.py"
        return source if trains and source and source.module not in NOT_TRAINING else None
    folder = _own_folder(top, installed_too=top == own)
    return None if folder is None else _in_folder(name, folder)


def _in_folder(name: str, folder: Path) -> Source | None:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = folder.joinpath(*parts[:count])
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return Source(".".join(parts[:count]), file)
    return None


def _own_folder(top: str, *, installed_too: bool = False) -> Path | None:
    """The folder in which a user's module or package lies; None for what is installed."""
    place = module_place(top)
    if place is None or not place.is_absolute():
        return None
    installed = {"site-packages", "dist-packages"} & set(place.parts) or any(
        place.is_relative_to(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")
    )
    return place.parent if installed_too or not installed else None


def _top(module: str) -> str:
    return module.partition(".")[0]
