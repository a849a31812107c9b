"""The images of a declared family by split and class, and everything in which it is mistaken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from carft_core.data.declaration import Declaration, ShiftFolders
from carft_core.data.folder_tree import (
    Listing,
    images,
    listed,
    nearest,
    no_class_folders,
    visible_folders,
)

Route = tuple[str | int, ...]
Report = Callable[[Route, str], None]
"""Notes what is wrong, and at which key of the declaration."""
Folders = Mapping[str, Sequence[str]]
"""Class folder -> where it lies below the root, in the order in which its parents are declared."""
TRAINED = ("train", "val")


@dataclass(frozen=True)
class DeclaredTree:
    """What was found. Of a tree with mistakes it is what is left of it."""

    classes: tuple[str, ...]
    """Train's class folders that count, sorted; a label is an index into them."""
    splits: Mapping[str, Listing]
    """`train`, `val` and `test` as far as they are declared, and the shifts as `shifts/<name>`."""


def read_declared(declared: Declaration, root: Path, report: Report) -> DeclaredTree:
    """List what is declared below `root`. Raises OSError for what cannot be read."""
    there = _class_folders(root, ("train",), declared.train, report)
    others = {
        name: _class_folders(root, (name,), folders, report)
        for name, folders in (("val", declared.val), ("test", declared.test))
        if folders
    }
    classes = _chosen(declared, there, {*there}.union(*others.values()), report)
    splits = {"train": _listing(root, {name: there[name] for name in classes}, ("train",), report)}
    for name, found in others.items():
        known = {*there, *(declared.exclude or ())}
        _fits(name, found, classes, known, report)
        own = {folder: found[folder] for folder in classes if folder in found}
        splits[name] = _listing(root, own, (name,), report)
    for name, shift in declared.shifts.items():
        found = _class_folders(root, ("shifts", name), shift.folders, report)
        kept = _of_shift(name, shift, found, classes, there, report) if found and classes else {}
        splits[f"shifts/{name}"] = _listing(root, kept, ("shifts", name), report)
    _apart(splits, report)
    return DeclaredTree(classes, splits)


def _class_folders(root: Path, route: Route, folders: Sequence[str], report: Report) -> Folders:
    """What lies in the folders of one split, joined."""
    found: dict[str, list[str]] = {}
    for index, folder in enumerate(folders):
        where = route if len(folders) == 1 else (*route, index)
        path = root / folder
        if folder in folders[:index]:
            report(where, f"{folder}/ stands in the list twice")
        elif not path.is_dir():
            report(where, _missing(root, folder))
        elif not (names := visible_folders(path)):
            report(where, f"{folder}/ {no_class_folders(path)}")
        else:
            for name in names:
                found.setdefault(name, []).append(name if folder == "." else f"{folder}/{name}")
    return found


def _missing(root: Path, folder: str) -> str:
    """That a folder is not there, and what is."""
    parent = (root / folder).parent
    if not parent.is_dir():
        return f"there is no {folder}/ in {root}"
    names = visible_folders(parent)
    return (
        f"there is no {folder}/ in {root}{nearest(Path(folder).name, names)}; "
        f"there are {listed(names) or 'no folders'}"
    )


def _chosen(
    declared: Declaration, there: Folders, anywhere: Collection[str], report: Report
) -> tuple[str, ...]:
    """The classes: train's folders, without those that are left out.

    What is left out may also be a folder of val or test alone: `anywhere` has all three.
    """
    for index, name in enumerate(declared.classes or ()):
        if there and name not in there:
            report(("classes", index), _unknown("class folder of train", name, there))
    for index, name in enumerate(declared.exclude or ()):
        if there and name not in anywhere:
            report(("exclude", index), _unknown("class folder", name, anywhere))
    wanted = there.keys() if declared.classes is None else set(declared.classes) & there.keys()
    classes = tuple(sorted(set(wanted) - set(declared.exclude or ())))
    if there and len(classes) < 2:
        only = f"the single class {classes[0]!r}" if classes else "no class"
        report(("train",), f"{only} is left; two are the least")
    for name in declared.class_names:
        if there and name not in there:
            report(("class_names", name), _unknown("class folder of train", name, there))
    return classes


def _fits(
    name: str, found: Folders, classes: Sequence[str], known: Collection[str], report: Report
) -> None:
    """An in-distribution split has every class, and no others but those that are left out."""
    strange = [folder for folder in found if folder not in known]
    if strange and classes:
        near = nearest(strange[0], classes)
        message = f"has folders that are no class of train: {listed(strange)}{near}"
        report((name,), f"{message}; there are {len(classes)}: {listed(classes)}")
    missing = [folder for folder in classes if folder not in found]
    if missing and found:
        message = f"lacks classes that train has: {listed(missing)}; `exclude` leaves classes out"
        report((name,), message)


def _of_shift(
    name: str,
    shift: ShiftFolders,
    found: Folders,
    classes: Sequence[str],
    there: Folders,
    report: Report,
) -> Folders:
    """The folders of a shift by class."""
    route = ("shifts", name)
    _names_of_shift(route, shift, found, classes, there, report)
    excluded = set(shift.exclude or ())
    kept: dict[str, list[str]] = {}
    strange = []
    for folder, paths in found.items():
        target = shift.rename.get(folder, folder)
        if {folder, target} & excluded:
            continue
        if target in classes and target in (shift.classes or classes):
            kept.setdefault(target, []).extend(paths)
        elif target not in there and shift.classes is None:
            strange.append(folder)
    if strange:
        near = nearest(strange[0], classes)
        report(
            route,
            f"has folders that are no class of train: {listed(strange)}{near}; `rename` says which "
            "class a folder is, `exclude` leaves it out",
        )
    elif not kept:
        report(route, "no class of it is left")
    for index, wanted in enumerate(shift.classes or ()):
        if wanted in classes and wanted not in kept:
            report((*route, "classes", index), f"{wanted!r} has no folder here")
    return {name: kept[name] for name in classes if name in kept}


def _names_of_shift(
    route: Route,
    shift: ShiftFolders,
    found: Folders,
    classes: Sequence[str],
    there: Folders,
    report: Report,
) -> None:
    """Report the names that mean nothing."""
    for index, name in enumerate(shift.classes or ()):
        if name not in classes:
            report((*route, "classes", index), _unknown("class", name, classes))
    for index, name in enumerate(shift.exclude or ()):
        if name not in found and name not in there:
            known = {*classes, *found}
            report((*route, "exclude", index), _unknown("class or folder", name, known))
    for folder, target in shift.rename.items():
        if folder not in found:
            report((*route, "rename", folder), _unknown("folder of the shift", folder, found))
        if target not in there:
            report((*route, "rename", folder), _unknown("class", target, classes))


def _listing(root: Path, folders: Folders, route: Route, report: Report) -> Listing:
    """The images by class, in the order of their paths."""
    problems: list[str] = []
    listing = {
        name: dict(sorted(chain.from_iterable(images(root, path, problems) for path in paths)))
        for name, paths in folders.items()
    }
    empty = [name for name, found in listing.items() if not found]
    for problem in problems:
        report(route, problem)
    if empty:
        report(route, f"class folders without images: {listed(empty)}; `exclude` leaves them out")
    return listing


def _apart(splits: Mapping[str, Listing], report: Report) -> None:
    """Nothing is measured on images that were trained on, and val is no part of test."""
    paths = {
        name: frozenset(chain.from_iterable(listing.values())) for name, listing in splits.items()
    }
    for name, own in paths.items():
        for other in TRAINED:
            if other not in paths or other == name or (name, other) == ("train", "val"):
                continue
            shared = sorted(own & paths[other])
            if shared:
                message = f"shares {len(shared)} images with {other}, such as {shared[0]}"
                report(tuple(name.split("/", 1)), message)


def _unknown(kind: str, name: str, allowed: Collection[str]) -> str:
    known = sorted(allowed)
    return f"no {kind} is named {name!r}{nearest(name, known)}; there are {listed(known)}"
