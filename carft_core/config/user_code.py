"""The user's own code that takes part in a run: algorithms, families, merges."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import digest_of

PRODUCT = frozenset({"carft_sweep"})


def own_code(*parts: type | Callable[..., object]) -> str | None:
    """Return one digest of the user's code among some classes and functions; None where the package
    defines all. Raises RequestError for code that no file defines."""
    own = [own_code_digest(part) for part in parts if is_own(part)]
    return digest_of(own) if own else None


def is_own(thing: type | Callable[..., object]) -> bool:
    """Return whether a class or function is the user's own code and not the package's."""
    return _top(thing.__module__) not in PRODUCT


def own_code_digest(thing: type | Callable[..., object]) -> str:
    """Return the sha256 over the Python files of the user's module or package that defines a class
    or function, and over the files beside it that these import (beside an installed module only its
    own files). This package's files are left out.

    Raises RequestError for code that no file defines, such as a class typed into a notebook.
    """
    top = _top(thing.__module__)
    sources = {} if top == "__main__" else _sources(top)
    if not sources:
        raise RequestError(
            f"{thing.__qualname__} is defined in no file; since its source is a part of what "
            "its runs are known by, put it into a module"
        )
    return digest_of({file: hashlib.sha256(text).hexdigest() for file, text in sources.items()})


def brings(top: str) -> set[str]:
    """Return `top`, the name of the user's module, and the top-level names of what its files
    import: of the files that `own_code_digest` reads."""
    return {top}.union(*map(_imported, _sources(top).values()))


def _sources(top: str) -> dict[str, bytes]:
    """Return the content of a module's Python files, and of files beside it that they import."""
    place = module_place(top)
    if place is None or not place.exists():
        return {}
    folder = place.parent
    installed = {"site-packages", "dist-packages"} & set(place.parts)
    waiting, seen, contents = {top}, set(PRODUCT), dict[str, bytes]()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        alone = folder / f"{name}.py"
        for file in [alone] if alone.is_file() else (folder / name).rglob("*.py"):
            content = file.read_bytes()
            contents[file.relative_to(folder).as_posix()] = content
            waiting |= set() if installed else _imported(content) - seen
    return contents


def module_place(top: str) -> Path | None:
    """Return the file, or the package's folder, of a top-level module; None for no such module. A
    module without a file, such as `sys`, gives a path that is not absolute."""
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # loaded without a specification, as `__main__` is
        return Path(top)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin or top)


@contextmanager
def blame_user_code(what: str, code: Callable[..., object]) -> Iterator[None]:
    """Turn any exception within the context, if `code` is the user's own, into a RequestError that
    begins with `what`. RequestErrors pass unchanged."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # whatever their code raises is said as a mistake in it
        if not is_own(code):
            raise
        raise RequestError(f"{what}: {reason(error, code.__module__)}") from error


def reason(error: BaseException, name: str) -> str:
    """Describe in one line an exception of user code, and the line of the module `name`, or of a
    file beside it, that raised it."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first = text.strip().partition("\n")[0]
    kind = type(error).__name__
    what = first if isinstance(error, RequestError) else f"{kind}: {first}" if first else kind
    places = list(own_lines(error, name))
    return f"{what} (at {places[-1]})" if places else what


def own_lines(error: BaseException, name: str) -> Iterator[str]:
    """Yield `file:line` of each line of the user's module `name`, or of a file beside it, in the
    traceback of `error`, innermost last."""
    place = module_place(_top(name))
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


@functools.lru_cache(maxsize=1024)  # a package is looked through for each run and each merge
def _imported(content: bytes) -> frozenset[str]:
    """Return the top-level names of what the import statements of a file import."""
    names: set[str] = set()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # nothing imports it, then
        return frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {_top(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(_top(node.module))
    return frozenset(names)


def _top(module: str) -> str:
    return module.partition(".")[0]
