"""A user's own modules and data families."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import keyword
import logging
import pkgutil
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.fields import explained
from carft_sweep.carft_core.config.registry import Registry
from carft_sweep.carft_core.config.trial import SECTIONS, flatten
from carft_sweep.carft_core.config.user_code import PRODUCT, brings, module_place, reason
from carft_sweep.carft_core.data import FAMILIES, Family
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.declaration import Declaration, Prompts, names_a_set
from carft_sweep.carft_core.data.families.image_folder import Declared
from carft_sweep.carft_core.data.listing import nearest
from carft_sweep.carft_core.errors import InvalidConfig, Problem, RequestError, Route, unknown
from carft_sweep.carft_core.files import path_or_none
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.models.prompts import (
    TEMPLATE_SETS,
    TemplateSet,
    mistakes,
    register_templates,
    template_set,
)
from carft_sweep.carft_core.training.optim import OPTIMISERS
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.spec.document import (
    COMMAND_LINE,
    Place,
    SpecDocument,
    read_text,
    validated_in_part,
)
from carft_sweep.sweeps.spec.paths import texts_of
from carft_sweep.tracking.ownership import TRUST_OPTION, other_writer
from carft_sweep.tracking.program import command, program

SOURCES_ROOT = Path(__file__).parents[2]
"""The folder of the package `carft_sweep`."""
SUBPACKAGES = ("carft_core", "sweeps", "tracking")
logger = logging.getLogger(__name__)


def source_digest() -> str:
    """Return the sha256 over the path and content of every Python file of the package."""
    digest = hashlib.sha256()
    # A pattern of all files would pass over folders that are links.
    packages = ((SOURCES_ROOT / name).rglob("*.py") for name in SUBPACKAGES)
    for files in (SOURCES_ROOT.glob("*.py"), *packages):
        for file in sorted(files):
            digest.update(f"{file.relative_to(SOURCES_ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


Vet = Callable[[str], None]
"""Takes a module as `resolve` returns it; raises RequestError if it must not be imported."""


def import_all(
    document: SpecDocument, folder: Path, more: Sequence[str], vet: Vet | None = None
) -> tuple[str, ...]:
    """Import the modules of the file (paths are relative to `folder`), and `more` of the command
    line (relative to the current folder), each once and only if `vet` permits.

    Returns names and absolute paths, which mean the same in every process. Raises InvalidConfig
    with every module that cannot be imported.
    """
    named, wanted = document.get(("import",)), list[tuple[Place, str, Path]]()
    for index, item in enumerate(named if isinstance(named, list) else [named]):
        if isinstance(item, str) and item:  # anything else is reported with the settings
            place = document.place(("import", index))
            wanted.append((Place(place.order, f"{place.text}: import"), item, folder))
    for index, item in enumerate(more):
        place = Place(2 * COMMAND_LINE + index, f"--import {item[:60]}")
        wanted.append((place, item, Path.cwd()))
    imports: dict[str, None] = {}
    seen: set[str] = set()
    for place, item, at in wanted:
        try:
            resolved = resolve([item], at)
            if seen.issuperset(resolved):
                continue  # `more` from a home lists the modules of the file too
            seen.update(resolved)
            if vet is not None:
                for module in resolved:
                    vet(module)
            load(resolved)
        except RequestError as error:
            document.add_errors(place, error)
        else:
            imports |= dict.fromkeys(resolved)
    if wanted:
        # A module that is missing would make every name that it registers a mistake.
        document.raise_errors()
    return tuple(imports)


def vet_of(home: Home, besides: Sequence[str] = ()) -> Vet:
    """Return a check that permits only modules, named by a home, which this user or root wrote
    outside of the home. All modules of a trusted home, and `besides` named by the user, are
    permitted."""

    def vet(item: str) -> None:
        if home.is_trusted or item in besides or item.endswith(FAMILY_SUFFIXES):
            return  # a family's file is read, and runs nothing
        for place in _places(item):
            if place.resolve().is_relative_to(home.path.resolve()):
                reason = "it lies in the home"
            elif (writer := other_writer(place)) is not None:
                reason = f"{place} {writer.reason}{writer.remedy and f' ({writer.remedy})'}"
            else:
                continue
            raise RequestError(
                f"{item} is not imported, though the home {home.path} names it: {reason}. If you "
                f"trust it: {TRUST_OPTION}"
            )

    return vet


def _places(item: str) -> Iterator[Path]:
    """Yield the existing files and folders that an import runs or can reach: the module's file and
    its folder, of a package each folder up to the one that holds the package."""
    if _is_path(item):
        place, last = Path(item), _located(Path(item))[1]
    else:
        module = module_place(item.partition(".")[0])
        if module is None or not module.is_absolute():
            return  # it is reported by who imports it, or built into Python
        place, last = module, module.parent
    yield place
    while place != last:
        place = place.parent
        yield place


def refuse_unimported(sweep: Mapping[str, Any], imports: Sequence[str]) -> None:
    """Raise InvalidConfig where a sweep, as plain data, names an algorithm, merge or family of the
    user that none of its `imports` defines: workers and `resume` would not know it."""
    files = {Path(item).resolve() for item in imports if _is_path(item)}
    modules = [item for item in imports if not is_family_file(item)]
    tops = (_located(Path(item))[0] if _is_path(item) else item for item in modules)
    brought = PRODUCT.union(*(brings(top.partition(".")[0]) for top in tops))
    beside = [sweep["baselines"], sweep.get("after", [])]
    names = set(_texts([*sweep["trial"].values(), *sweep["parameters"].values(), *beside]))
    problems = []
    registries: tuple[Registry[Any], ...] = (ALGORITHMS, MERGES, FAMILIES, OPTIMISERS)
    for registry in registries:
        for name in sorted(names & {*registry}):
            thing = registry[name]
            declared = _declared(thing) if isinstance(thing, Family) else None
            code = registry.code(thing)
            module = getattr(code, "func", code).__module__  # of a functools.partial, what it calls
            file: Path | None
            if declared is not None:
                file, is_brought = declared.file, declared.file.resolve() in files
            else:
                top = module.partition(".")[0]
                file = None if top == "__main__" else module_place(top)
                is_brought = top in brought
            if not is_brought:
                cwd, path = Path.cwd(), file or Path(f"{name}.py")
                item = path.relative_to(cwd) if path.is_relative_to(cwd) else path
                message = (
                    f"{registry.kind} {name!r} is of {file or 'no file'}, which the sweep does not "
                    f'import, so no worker would know it; say imports=["{item}"] (`import:` in a '
                    "sweep file)"
                )
                problems.append(Problem((), message))
    if problems:
        raise InvalidConfig(problems)


def _texts(value: object) -> Iterator[str]:
    """Yield every text in plain data except the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Iterable):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


FAMILY_SUFFIXES = (".yaml", ".yml")
"""Suffixes of the files that declare a family."""


def resolve(imports: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Return each import in a form that means the same in every process and current folder.

    A path (of a `.py` file, a package's folder, or a family's YAML file) is relative to `folder`,
    where the sweep file is, and becomes an absolute file path. The name of an installed module
    stays; another name is looked for in `folder`, then in the current folder, and becomes the path
    of its file. Raises RequestError for a name without a module.
    """
    return tuple(_resolved(item, folder.resolve()) for item in imports)


def _resolved(item: str, folder: Path) -> str:
    if _is_path(item):
        path = _without_links(folder / Path(item).expanduser())
        return str(path / "__init__.py" if path.is_dir() else path)
    folders = (folder, Path.cwd())
    place = module_place(item.partition(".")[0])
    if place is not None and place.parent not in folders:
        return item
    for candidate in folders:
        path = candidate.joinpath(*item.split("."))
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return str(file)
    beside = {name for candidate in folders for name in _modules_in(candidate)}
    near = nearest(item, {*beside, *(module.name for module in pkgutil.iter_modules())})
    raise RequestError(
        f"import: no module {item!r} is installed, and none is in {folder} (a file is named by "
        f"its path, such as ./my_methods.py){near}"
    )


def _without_links(path: Path) -> Path:
    """Return a file's absolute path with links in its folder resolved; the file's own name, by
    which a module is imported, is kept."""
    return path.parent.resolve() / path.name


def load(imports: Sequence[str]) -> None:
    """Import what `resolve` returned, in order, once per process, so that algorithms, merges and
    families are registered.

    Families that a YAML file declares are registered. A Python file is imported under its own name,
    as a part of its package if it has one. Its folder comes last on the search path: files beside
    it can be imported, and no installed module is hidden. Raises RequestError with the module, the
    reason and the line.
    """
    for item in imports:
        if item.endswith(FAMILY_SUFFIXES):
            register_family(Path(item))
            continue
        name = item
        if _is_path(item):
            name, folder = _located(Path(item))
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        importlib.invalidate_caches()
        try:
            file = getattr(importlib.import_module(name), "__file__", None)
        except (Exception, SystemExit) as error:  # whatever a module of the user's own raises
            raise RequestError(f"cannot import {item}: {reason(error, name)}") from error
        if _is_path(item) and (file is None or Path(file).resolve() != Path(item).resolve()):
            raise RequestError(
                f"cannot import {item}: the name {name!r} is taken by another module "
                f"({file or 'built into Python'}); rename yours"
            )
        logger.debug("imported %s", item)


def _is_path(item: str) -> bool:
    return item.endswith((".py", *FAMILY_SUFFIXES)) or "/" in item or item.startswith(("~", "."))


def _located(file: Path) -> tuple[str, Path]:
    """Return the dotted name of a file's module, and the folder to import it from (which holds the
    outermost package). Raises RequestError for a missing file or a name that is no module's."""
    if not file.is_file():
        near = nearest(file.name, _modules_in(file.parent, ".py"))
        raise RequestError(f"import: {file} does not exist{near}")
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


def _modules_in(folder: Path, suffix: str = "") -> list[str]:
    """Return the names of a folder's modules, those of files with `suffix` added, and packages."""
    if not folder.is_dir():
        return []
    files = [f"{path.stem}{suffix}" for path in folder.glob("*.py")]
    return files + [path.parent.name for path in folder.glob("*/__init__.py")]


APART = ("data.family", "data.root", "data.test_domain", "data.balanced")
"""Fields of a trial for which a family has no default."""
NEEDS = "a family file has at least test, or test_fraction"
_OF_SWEEPS = frozenset({"parameters", "trial"})
"""Keys that a sweep file has, and no family file."""


def refuse_family_file(document: SpecDocument, file: Path) -> None:
    """Raise RequestError if the file given as a sweep declares a family instead."""
    keys = document.data.keys()
    if keys <= Declaration.model_fields.keys() and keys & {"test", "test_fraction"}:
        raise RequestError(
            f"{file.name} is a family file, not a sweep file: a sweep names it as "
            f"trial.data.family; `{program()} data check {shlex.quote(str(file))}` checks its "
            "images"
        )


def is_family_file(text: object) -> bool:
    """Return whether a text names a family's file and not a family, whose name has no dot."""
    return isinstance(text, str) and text.endswith(FAMILY_SUFFIXES)


def register_family(file: Path) -> Family:
    """Register the family that a file declares, with its templates, and return it. A file that was
    registered before is read again if its text has changed. Raises RequestError when the file
    cannot be read or another family has its name, InvalidConfig with every mistake and its line."""
    file = _without_links(file)
    if path_or_none(str(file)) is None:
        folder = path_or_none(str(file.parent))
        beside = [] if folder is None else [path.name for path in folder.glob("*.y*ml")]
        raise RequestError(f"{file} does not exist{nearest(file.name, beside)}")
    text = read_text(file, "a family file")
    for known in FAMILIES.values():
        before = _declared(known)
        if before is not None and (before.file, before.text) == (file, text):
            return known
    document = SpecDocument(text, file.name, NEEDS)
    if document.data.keys() & _OF_SWEEPS:
        raise RequestError(
            f"{file.name} is a sweep file, not a family file; "
            f"`{command('check', str(file), None)}` checks it, and its data too"
        )
    fields = {key: value for key, value in document.data.items() if value is not None}
    fields.setdefault("name", file.name.partition(".")[0])
    declaration = validated_in_part(document, Declaration, fields)
    for problem in _problems(declaration):
        if not document.is_wrong(problem.path[:1], ("test",), ("test_fraction",)):
            document.add_error(problem.path, problem.message)
    document.raise_errors()
    declared = Declared(declaration, file, text, document.lines)
    _check_name(document, declared)
    defaults = dict(flatten(declared.declaration.defaults)) | _prompts(document, declared)
    document.raise_errors()
    family: Family = FAMILIES.register(declared.family(defaults))
    return family


def place_of(config: DataConfig) -> str:
    """Return where the images of a run are: `data.root`, the root that its family's file declares,
    or `builtin`."""
    declared = _declared(FAMILIES.get(config.family))
    return config.root or ("builtin" if declared is None else str(declared.root))


def _prompts(document: SpecDocument, declared: Declared) -> dict[str, object]:
    """Register the templates that a family's file lists or names by file; return the defaults of
    its runs: `prompts.classes` and `prompts.contexts` -> template set."""
    defaults: dict[str, object] = {}
    for key in Prompts.model_fields:
        texts: tuple[str, ...] | None = getattr(declared.declaration.prompts, key)
        if texts is None:
            continue
        name = f"{declared.declaration.name}_{key}"
        try:
            if not names_a_set(texts):
                templates = TemplateSet(name, texts)
            elif texts[0] in TEMPLATE_SETS:
                defaults[f"prompts.{key}"] = texts[0]
                continue
            else:
                file = path_or_none(str(declared.file.parent / Path(texts[0]).expanduser()))
                read = template_set(texts[0] if file is None else str(file))
                templates = TemplateSet(name, read.templates, read.domains)
            register_templates(templates, again=_is_ours(name, declared.declaration.name))
        except RequestError as error:
            document.add_error(("prompts", key), str(error))
        else:
            defaults[f"prompts.{key}"] = name
    return defaults


def _is_ours(name: str, family: str) -> bool:
    """Return whether template set `name` was registered by an earlier text of the same file."""
    other = FAMILIES.get(family)
    return other is not None and _declared(other) is not None and name in other.defaults.values()


def _declared(family: Family | None) -> Declared | None:
    """Return the declaration in a family's file; None for a family written in Python."""
    owner = getattr(family.open, "__self__", None) if family else None
    return owner if isinstance(owner, Declared) else None


def _check_name(document: SpecDocument, declared: Declared) -> None:
    """Report the name of `declared` if another family has it, whose file still exists."""
    family = FAMILIES.get(declared.declaration.name)
    was = _declared(family)
    if family is not None and was is None:
        message = f"{family.name!r} is a family already: {family.summary}; rename it"
        document.add_error(("name",), message)
    elif was is not None and was.file != declared.file and was.file.exists():
        message = f"{was.declaration.name!r} is taken by {was.file}; give it another"
        document.add_error(("name",), message)


def _problems(declared: Declaration) -> Iterator[Problem]:
    """Yield mistakes in a whole declaration: keys that exclude each other, templates, defaults."""
    if declared.test is None and declared.test_fraction is None:
        message = "which folder is the test? If there is none, say test_fraction: 0.2"
        yield Problem(("test",), message)
    pairs = {"test": "test_fraction", "classes": "exclude", "class_names": "class_names_file"}
    for name, other in pairs.items():
        if getattr(declared, name) and getattr(declared, other):
            yield Problem((other,), f"does not go with {name}; keep one of the two")
    for key in Prompts.model_fields:
        texts = getattr(declared.prompts, key) or ()
        if not names_a_set(texts):
            for index, message in mistakes(texts):
                yield Problem(("prompts", key, index), message)
    yield from _wrong_defaults(declared.defaults)


def _wrong_defaults(defaults: Mapping[str, Any]) -> Iterator[Problem]:
    allowed = {f"{name}.{key}" for name, cls in SECTIONS.items() for key in cls.model_fields}
    for field, value in flatten(defaults):
        written = (field,) if field in defaults else field.split(".")
        route: Route = ("defaults", *written)
        if field not in allowed - set(APART):
            yield Problem(route, unknown("field", field, allowed - set(APART)))
            continue
        section, _, key = field.partition(".")
        try:
            SECTIONS[section].model_validate({key: value})
        except ValidationError as error:
            for problem in explained(error, SECTIONS[section], ()):
                yield Problem(route, problem.message)


FIELD = "data.family"


def name_families(document: SpecDocument, folder: Path) -> tuple[str, ...]:
    """Register each family file that a normalised sweep file names, replace its path by the name of
    the family, and return the absolute paths. A path in the file is relative to `folder`, one of
    `--set` to the current folder. Mistakes are reported with those of the sweep file."""
    files: dict[str, None] = {}
    for holder, key, route in list(texts_of(document, FIELD)):
        if not is_family_file(holder[key]):
            continue
        place = document.place(route)
        base = Path.cwd() if place.is_of_command_line else folder
        try:
            file = resolve([holder[key]], base)[0]
            holder[key] = register_family(Path(file)).name
        except (RequestError, RuntimeError) as error:  # `~nobody/birds.yaml`: no such home
            document.add_errors(Place(place.order, f"{place.text}: {FIELD}"), error)
            document.remove(route[:2] if route[0] == "parameters" else route)
        else:
            files[file] = None
    return tuple(files)
