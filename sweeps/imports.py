"""A user's own algorithms, families and merges: their modules, found and imported."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import keyword
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from carft_core.errors import RequestError
from carft_core.identity import module_place

DECLARED = (".yaml", ".yml")
"""A family's file, which is declared and not programmed."""


def resolve(imports: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Each import such that it means the same in every process, whatever its current folder.

    A path (of a `.py` file, a package's folder, or a family's YAML file) is relative to `folder`,
    where the sweep file lies, and becomes the absolute one of a file. A module's name stays when
    it is installed; else it is looked for in `folder`, then in the current folder, and becomes the
    path of its file. Raises RequestError for a name that is found nowhere.
    """
    return tuple(_resolved(item, folder.resolve()) for item in imports)


def load(imports: Sequence[str]) -> None:
    """Import what `resolve` gave, in its order, so that it registers itself; once per process.

    What a family's file declares is registered.

    A file is imported under its own name, as a part of its package where it has one. Its folder
    comes last on the search path: files beside it can be imported, and nothing that is installed
    is hidden. Raises RequestError that tells what cannot be imported, why, and at which line.
    """
    for item in imports:
        if item.endswith(DECLARED):
            from sweeps.family_file import register_family

            register_family(Path(item))
            continue
        if _is_path(item):
            name, folder = _located(Path(item))
            _refuse_taken(item, name.partition(".")[0], folder)
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        else:
            name = item
        _import(item, name)


def _is_path(item: str) -> bool:
    return item.endswith((".py", *DECLARED)) or "/" in item or item.startswith(("~", "."))


def _resolved(item: str, folder: Path) -> str:
    if _is_path(item):
        path = folder / Path(item).expanduser()
        path = path.parent.resolve() / path.name  # the last part names the module, if it is a link
        return str(path / "__init__.py" if path.is_dir() else path)
    folders = (folder, Path.cwd())
    top = item.partition(".")[0]
    if (place := module_place(top)) is not None and place.parent not in folders:
        return item
    for candidate in folders:
        path = candidate.joinpath(*item.split("."))
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return str(file)
    beside = {name for candidate in folders for name in _modules_in(candidate)}
    near = _near(item, {*beside, *(module.name for module in pkgutil.iter_modules())})
    raise RequestError(
        f"import: no module {item!r} is installed, and none lies in {folder} (a file is named "
        f"by its path, such as ./my_methods.py){near}"
    )


def _located(file: Path) -> tuple[str, Path]:
    """The module's name of a file, and the folder in which the name's first part lies."""
    if file.name == "__init__.py" and not file.exists() and file.parent.is_dir():
        raise RequestError(f"import: {file.parent} is no package: it has no __init__.py")
    if not file.is_file():
        near = _near(file.name, _modules_in(file.parent, ".py"))
        raise RequestError(f"import: {file} does not exist{near}")
    if file.suffix != ".py":
        raise RequestError(f"import: {file} is no Python file: its name must end in .py")
    path = file.parent if file.name == "__init__.py" else file
    parts = [path.name.removesuffix(".py")]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    for part in parts:
        if not part.isidentifier() or keyword.iskeyword(part):
            raise RequestError(
                f"cannot import {file}: {part!r} is no name of a module; rename it, using letters, "
                "digits and '_' only"
            )
    return ".".join(parts), folder


def _refuse_taken(item: str, top: str, folder: Path) -> None:
    """Raise RequestError when `top` is another module than the one that lies in `folder`."""
    importlib.invalidate_caches()
    known = sys.modules.get(top)
    if known is not None:
        file = getattr(known, "__file__", None)
    else:
        spec = importlib.util.find_spec(top)
        file = None if spec is None else spec.origin
        if file is None:  # nothing, or a folder without __init__.py, behind which ours is found
            return
    own = [(folder / name).resolve() for name in (f"{top}.py", f"{top}/__init__.py")]
    if file is None or Path(file).resolve() not in own:
        raise RequestError(
            f"cannot import {item}: the name {top!r} is taken by another module "
            f"({file or 'built into Python'}); rename yours"
        )


def _import(item: str, name: str) -> None:
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise RequestError(f"cannot import {item}: {_told(error, name)}") from error


def _told(error: BaseException, name: str) -> str:
    """What went wrong, in one line, and at which line of the user's own."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{name}.".startswith(f"{missing}."):
        package = sys.modules.get(missing.rpartition(".")[0])
        known = pkgutil.iter_modules(None if package is None else getattr(package, "__path__", []))
        near = _near(missing.rpartition(".")[2], (module.name for module in known))
        return f"there is no module {missing!r}{near}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first = text.strip().partition("\n")[0]
    kind = type(error).__name__
    what = first if isinstance(error, RequestError) else f"{kind}: {first}" if first else kind
    places = list(_own_lines(error, name))
    return f"{what} (at {places[-1]})" if places else what


def _own_lines(error: BaseException, name: str) -> Iterator[str]:
    """`file:line` for each of the user's own lines that the error went through, inmost last."""
    place = module_place(name.partition(".")[0])
    if place is None:
        return
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    for file, line in frames:
        # A single file may draw on others beside it.
        beside = place.suffix == ".py" and Path(file).parent == place.parent
        if beside or Path(file).is_relative_to(place):
            yield f"{file}:{line}"


def _modules_in(folder: Path, suffix: str = "") -> list[str]:
    """The names of the modules in a folder, those of files with `suffix`."""
    if not folder.is_dir():
        return []
    files = [f"{path.stem}{suffix}" for path in folder.glob("*.py")]
    return files + [path.parent.name for path in folder.glob("*/__init__.py")]


def _near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'my_methods'?`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
