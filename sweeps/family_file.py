"""A user's own family in a YAML file: read, checked, and registered under its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from carft_core.config import SECTIONS, flatten
from carft_core.data import FAMILIES, Family
from carft_core.data.base import DataConfig
from carft_core.data.declaration import Declaration, Prompts, names_a_set
from carft_core.data.folders import nearest
from carft_core.data.image_folder import Declared
from carft_core.errors import Problem, RequestError, unknown
from carft_core.fields import explained
from carft_core.files import existing
from carft_core.prompts import (
    TEMPLATE_SETS,
    TemplateSet,
    mistakes,
    register_templates,
    template_set,
)
from sweeps.draft import Draft
from sweeps.models import validated
from sweeps.yaml_lines import YamlError, parse, read_text

SUFFIXES = (".yaml", ".yml")
APART = ("data.family", "data.root", "data.test_domain", "data.val_domain", "data.balanced")
"""Fields of a trial for which a family has no default."""
NEEDS = "a family file has at least test, or test_fraction"


def is_family_file(text: object) -> bool:
    """Whether it names a file and not a family: no family's name has a dot."""
    return isinstance(text, str) and text.endswith(SUFFIXES)


def register_family(file: Path) -> Family:
    """Make the family that a file declares known under its name, with its templates; gives it back.

    The same file may come again: read anew where its text has changed. Raises RequestError when
    it cannot be read or another family has its name, InvalidConfig with every mistake in it, each
    with its line.
    """
    file = file.absolute()
    if existing(str(file)) is None:
        folder = existing(str(file.parent))
        beside = [] if folder is None else [path.name for path in folder.glob("*.y*ml")]
        raise RequestError(f"{file} does not exist{nearest(file.name, beside)}")
    text = read_text(file, "a family file")
    for known in FAMILIES.values():
        before = _declared_or_none(known)
        if before is not None and (before.file, before.text) == (file, text):
            return known
    draft = _draft(file, text)
    declared = _read(draft, file, text)
    _check_name(draft, declared)
    defaults = dict(flatten(declared.declaration.defaults)) | _prompts(draft, declared)
    draft.check()
    family: Family = FAMILIES.register(declared.family(defaults))
    return family


def place_of(config: DataConfig) -> str:
    """Where the images of a run lie: `data.root`, or the root that its family declares."""
    known = FAMILIES.get(config.family)
    declared = None if known is None else _declared_or_none(known)
    return config.root or ("builtin" if declared is None else str(declared.root))


def _draft(file: Path, text: str) -> Draft:
    try:
        return Draft(parse(text), file.name, NEEDS)
    except YamlError as error:
        raise RequestError(f"{file.name}:{error.line}: {error.reason}") from None


def _read(draft: Draft, file: Path, text: str) -> Declared:
    """Raises InvalidConfig with what is wrong in the file itself."""
    given: dict[str, Any] = {key: value for key, value in draft.data.items() if value is not None}
    given.setdefault("name", file.name.partition(".")[0])
    declaration = validated(draft, Declaration, given, ())
    if declaration is not None:
        for problem in _problems(declaration):
            draft.report(problem.path, problem.message)
    else:
        _report_the_rest(draft, given)
    draft.check()
    if declaration is None:
        raise TypeError("a declaration is missing, and no mistake was reported")
    return Declared(declaration, file, text, draft.lines)


def _report_the_rest(draft: Draft, given: Mapping[str, Any]) -> None:
    """With mistakes in some keys the others are looked at as well, so that all come at once."""
    right: dict[str, Any] = {}
    for key, value in given.items():
        with contextlib.suppress(ValidationError):
            Declaration.model_validate({"name": "some", key: value})
            right[key] = value
    wrong = given.keys() - right.keys()
    for problem in _problems(Declaration.model_validate({"name": "some", **right})):
        if not wrong & {problem.path[0], "test", "test_fraction"}:
            draft.report(problem.path, problem.message)


def _prompts(draft: Draft, declared: Declared) -> dict[str, object]:
    """The defaults of the fields that name templates; inline ones become sets of the family's."""
    chosen: dict[str, object] = {}
    for key in Prompts.model_fields:
        texts: tuple[str, ...] | None = getattr(declared.declaration.prompts, key)
        if texts is None:
            continue
        name = f"{declared.declaration.name}_{key}"
        try:
            if not names_a_set(texts):
                templates = TemplateSet(name, texts)
            elif texts[0] in TEMPLATE_SETS:
                chosen[f"prompts.{key}"] = texts[0]
                continue
            else:
                templates = _from_file(texts[0], declared.file.parent, name)
            register_templates(templates, again=_is_ours(name, declared.declaration.name))
        except RequestError as error:
            draft.report(("prompts", key), str(error))
        else:
            chosen[f"prompts.{key}"] = name
    return chosen


def _from_file(text: str, folder: Path, name: str) -> TemplateSet:
    """The templates of a file that lies beside the family's."""
    path = existing(str(folder / Path(text).expanduser()))
    read = template_set(text if path is None else str(path))
    return TemplateSet(name, read.templates, read.domains)


def _is_ours(name: str, family: str) -> bool:
    """Whether a set of this name can only come from an earlier text of the family's file."""
    known = FAMILIES.get(family)
    return (
        known is not None
        and _declared_or_none(known) is not None
        and name in known.defaults.values()
    )


def _declared_or_none(family: Family) -> Declared | None:
    owner = getattr(family.open, "__self__", None)
    return owner if isinstance(owner, Declared) else None


def _check_name(draft: Draft, declared: Declared) -> None:
    """A name is one family's, unless one file took the other's place."""
    known = FAMILIES.get(declared.declaration.name)
    was = None if known is None else _declared_or_none(known)
    if known is not None and was is None:
        draft.report(("name",), f"{known.name!r} is a family already: {known.summary}; rename it")
    elif was is not None and was.file != declared.file and was.file.exists():
        message = f"{was.declaration.name!r} is taken by {was.file}; give it another"
        draft.report(("name",), message)


def _problems(declared: Declaration) -> Iterator[Problem]:
    """What is wrong in it as a whole: keys that exclude each other, templates, defaults."""
    if declared.test is None and declared.test_fraction is None:
        message = "which folder is the test? If there is none, say test_fraction: 0.2"
        yield Problem(("test",), message)
    for one, other in (
        ("test", "test_fraction"),
        ("classes", "exclude"),
        ("class_names", "class_names_file"),
    ):
        if getattr(declared, one) and getattr(declared, other):
            yield Problem((other,), f"does not go with {one}; keep one of the two")
    for key in Prompts.model_fields:
        texts = getattr(declared.prompts, key) or ()
        if not names_a_set(texts):
            for index, message in mistakes(texts):
                yield Problem(("prompts", key, index), message)
    yield from _wrong_defaults(declared.defaults)


def _wrong_defaults(defaults: Mapping[str, Any]) -> Iterator[Problem]:
    allowed = {f"{name}.{key}" for name, cls in SECTIONS.items() for key in cls.model_fields}
    for field, value in flatten(defaults):
        route = ("defaults", *_as_written(defaults, field))
        if field not in allowed - set(APART):
            yield Problem(route, unknown("field", field, allowed - set(APART)))
            continue
        section, _, key = field.partition(".")
        try:
            SECTIONS[section].model_validate({key: value})
        except ValidationError as error:
            for problem in explained(error, SECTIONS[section], ()):
                yield Problem(route, problem.message)


def _as_written(defaults: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """`optim.lr` stands there as such, or nested."""
    return (field,) if field in defaults else tuple(field.split("."))
