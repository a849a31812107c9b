"""A user's own images: a folder tree, as it is or as a family file declares it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import torch

from carft_core.data.base import (
    RESERVED,
    SHIFT_NAME,
    DataConfig,
    Family,
    FamilyData,
    Files,
    FoundSplit,
    Split,
    refuse_held_out,
)
from carft_core.data.declaration import Declaration, ShiftFolders
from carft_core.data.folders import (
    REQUIRED,
    Listing,
    ShardIndex,
    Tree,
    class_names,
    images,
    listed,
    listing_digest,
    names_in,
    nearest,
    no_class_folders,
    plain_name,
    read_tree,
    readable,
    refusal,
    repeated,
    shard_source,
    visible_folders,
)
from carft_core.data.splits import carve_test
from carft_core.data.transforms import read_rgb
from carft_core.errors import RequestError, dotted

LAYOUT = (
    "expected train/<class>/<image>, test/<class>/<image>, optionally val/<class>/<image> and "
    "shifts/<name>/<class>/<image>; or tar shards in the place of <class>/<image>"
)


def open_image_folder(config: DataConfig) -> FamilyData:
    """Open the tree at `data.root`. A process reads a tree once.

    Raises RequestError with every mistake of the tree at once. Images are not decoded here: a
    broken one raises when its turn comes.
    """
    root = _root(config)
    with readable():
        return _opened(root)


def look_image_folder(config: DataConfig) -> Mapping[str, FoundSplit]:
    """Each split of the tree as it is, whatever is wrong in the others."""
    root = _root(config)
    with readable():
        tree = read_tree(root)
    problems = [*tree.problems, *_split_problems(tree)]
    absent = {name: FoundSplit(is_there=False) for name in REQUIRED if name not in tree.splits}
    return absent | {
        name: found_in(
            root / name,
            listing,
            tree.classes,
            [text for text in problems if text.startswith(f"{name}/")],
        )
        for name, listing in tree.splits.items()
    }


def found_in(
    folder: Path | None, listing: Listing, classes: Sequence[str], problems: Sequence[str]
) -> FoundSplit:
    """A split as it is listed, of a family that has these classes."""
    return FoundSplit(
        folder,
        images=sum(map(len, listing.values())),
        classes=sum(bool(listing.get(name)) for name in classes),
        expected_classes=len(classes),
        digest=listing_digest(listing),
        problems=tuple(problems),
    )


def _root(config: DataConfig) -> Path:
    """Raises RequestError when there is none."""
    if config.root is None:
        raise RequestError(f"data.root: which folder holds the images? image_folder {LAYOUT}")
    refuse_held_out(
        config, "leave the field out and put what is to be held out into shifts/<name>/"
    )
    root = Path(config.root).expanduser().absolute()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise RequestError(f"data.root: {root} {what}; {LAYOUT}")
    return root


@functools.lru_cache(maxsize=4)
def _opened(root: Path) -> FamilyData:
    tree = read_tree(root)
    problems = [*tree.problems, *_split_problems(tree)]
    names, name_problems = class_names(root, tree.classes)
    problems += name_problems
    if problems:
        title = f"data.root: {root} cannot be used ({LAYOUT}):"
        raise RequestError(refusal(title, problems))
    splits = {
        name: folder_split(root, listing, tree.classes, tree.shards.get(name))
        for name, listing in tree.splits.items()
    }
    shifts = {
        name.removeprefix("shifts/"): split
        for name, split in splits.items()
        if name.startswith("shifts/")
    }
    digest = _digest(tree, names)
    return FamilyData(
        names,
        splits["train"],
        splits.get("val"),
        splits["test"],
        shifts,
        digest,
        digests={name: listing_digest(listing) for name, listing in tree.splits.items()},
    )


def folder_split(
    root: Path, listing: Listing, classes: Sequence[str], shards: ShardIndex | None = None
) -> Split:
    """The split that holds the images of a listing, in the order of `classes`.

    Its folders are among them. With `shards` the images lie in these.
    """
    ids = [path for name in classes for path in listing.get(name, ())]
    counts = torch.tensor([len(listing.get(name, ())) for name in classes])
    labels = torch.repeat_interleave(torch.arange(len(classes)), counts)
    present = tuple(index for index, name in enumerate(classes) if name in listing)
    some = None if len(present) == len(classes) else present
    source = (
        Files(root, pa.array(ids, pa.string()), read_rgb)
        if shards is None
        else shard_source(root, ids, shards)
    )
    return Split(ids=tuple(ids), labels=labels, source=source, classes=some)


def _split_problems(tree: Tree) -> list[str]:
    """What does not fit between the splits."""
    problems = []
    known = frozenset(tree.classes)
    for name, listing in tree.splits.items():
        unknown = [folder for folder in listing if folder not in known]
        if known and unknown:
            near = "".join(nearest(folder, tree.classes) for folder in unknown[:1])
            problems.append(
                f"{name}/ has folders that are no class of train: {listed(unknown)}{near}; "
                f"train has {len(known)}: {listed(tree.classes)}"
            )
        missing = [folder for folder in tree.classes if folder not in listing]
        if listing and missing and not name.startswith("shifts/"):
            problems.append(f"{name}/ lacks classes that train has: {listed(missing)}")
    if len(tree.classes) == 1:
        problems.append(f"train/ has the single class {tree.classes[0]!r}; two are the least")
    for name in tree.splits:
        shift = name.removeprefix("shifts/")
        if shift != name and (shift in RESERVED or not SHIFT_NAME.fullmatch(shift)):
            problems.append(
                f"{name}/ gives its name to the metric ood/{shift}/top1: rename it, using letters, "
                "digits, '_', '-' and '.' only, and not 'mean', which is the mean over shifts, "
                "or 'val', which is for choosing"
            )
    return problems


def _digest(tree: Tree, names: Sequence[str]) -> str:
    """Over the classes, their names, and every image's path below the root and size in bytes.

    The images' contents are not read: that would take minutes for a million of them.
    """
    digest = hashlib.sha256(b"image_folder/1\n")
    for folder, name in zip(tree.classes, names, strict=True):
        digest.update(f"class\0{folder}\0{name}\n".encode())
    images: Mapping[str, int] = {
        path: size
        for listing in tree.splits.values()
        for files in listing.values()
        for path, size in files.items()
    }
    for path in sorted(images):
        digest.update(f"image\0{path}\0{images[path]}\n".encode())
    return digest.hexdigest()


IMAGE_FOLDER = Family(
    name="image_folder",
    summary="your own images, in class folders under data.root",
    open=open_image_folder,
    defaults={
        "data.augmentation": "wise_ft",
        "prompts.classes": "openai",
        "prompts.contexts": "openai",
    },
    look=look_image_folder,
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


@dataclass(frozen=True, eq=False)
class Declared:
    """A declaration with the file that it stands in. It equals nothing but itself."""

    declaration: Declaration
    file: Path
    """Absolute; `root` and `class_names_file` are relative to its folder."""
    text: str
    """What the file held."""
    lines: Mapping[Route, int]
    """Where each value stands in it, for messages."""

    def family(self, defaults: Mapping[str, object]) -> Family:
        """As it is to be registered, with its defaults for the fields of a trial."""
        given = self.declaration
        known = {"data.augmentation": "wise_ft", **defaults}
        return Family(given.name, given.summary, self.open, known, given.domains, look=self.look)

    def open(self, config: DataConfig) -> FamilyData:
        """Open the folders below `data.root`, else below the declared root; once in a process.

        Raises RequestError with everything that does not fit, each with its line in the file.
        """
        root = self._root(config)
        with self._readable():
            return _opened_declared(self, root)

    def look(self, config: DataConfig) -> Mapping[str, FoundSplit]:
        """Each declared split as it is, whatever is wrong in the others.

        Raises RequestError when there is no root.
        """
        root, problems = self._root(config), dict[Route, list[str]]()

        def report(route: Route, message: str) -> None:
            part = route[:2] if route[0] == "shifts" else route[:1]
            problems.setdefault(part, []).append(f"{self.place(route)}: {message}")

        with self._readable():
            tree = read_declared(self.declaration, root, report)
        carved = self.declaration.test_fraction is not None
        found = {}
        for name, listing in tree.splits.items():
            wrong = problems.get(tuple(name.split("/", 1)), [])
            split = found_in(self._folder(name, root), listing, tree.classes, wrong)
            # A part of this train becomes the test: neither has a listing of its own.
            found[name] = replace(split, digest=None) if carved and name == "train" else split
        return found

    def _folder(self, name: str, root: Path) -> Path | None:
        """The one folder of a split; None where several are joined."""
        given = self.declaration
        shift = name.removeprefix("shifts/")
        folders = getattr(given, name) if shift == name else given.shifts[shift].folders
        return root / folders[0] if len(folders) == 1 else None

    def _root(self, config: DataConfig) -> Path:
        refuse_held_out(
            config,
            "leave the field out, and declare what is held out as one of the shifts in "
            f"{self.file.name}",
        )
        root = self.root if config.root is None else Path(config.root).expanduser().absolute()
        if not root.is_dir():
            where = "data.root" if config.root is not None else self.place(("root",))
            what = "is not a folder" if root.exists() else "does not exist"
            raise RequestError(f"{where}: {root} {what}")
        return root

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Raises RequestError for what the system cannot read."""
        try:
            yield
        except OSError as error:
            raise RequestError(
                f"data.family: {error.filename} cannot be read: {error.strerror}"
            ) from None

    @property
    def root(self) -> Path:
        """The declared folder of all images."""
        return self.file.parent / Path(self.declaration.root).expanduser()

    def place(self, route: Route) -> str:
        """`birds.family.yaml:7: shifts.night`, or without the line where there is none."""
        line = self.line(route)
        return f"{self.file.name}{f':{line}' if line else ''}: {dotted(route)}"

    def line(self, route: Route) -> int:
        """Of what stands at `route`, else of the nearest thing around it; 0 for a default."""
        while route and route not in self.lines:
            route = route[:-1]
        return self.lines.get(route, 0) if route else 0


@functools.lru_cache(maxsize=4)
def _opened_declared(declared: Declared, root: Path) -> FamilyData:
    given, problems = declared.declaration, dict[str, int]()

    def report(route: Route, message: str) -> None:
        problems[f"{declared.place(route)}: {message}"] = declared.line(route)

    tree = read_declared(given, root, report)
    names = _names(declared, tree, report)
    if given.test_fraction is not None:
        least = 2 if given.val else 3
        few = [name for name, found in tree.splits["train"].items() if 0 < len(found) < least]
        if few:
            report(
                ("test_fraction",),
                f"a class needs {least} images of which one becomes a test; there are less of "
                f"{listed(few)}; add images, or `exclude` it",
            )
    if problems:
        title = f"data.family: {given.name} is not as declared in {root}:"
        raise RequestError(refusal(title, sorted(problems, key=lambda text: problems[text])))
    splits = {name: folder_split(root, found, tree.classes) for name, found in tree.splits.items()}
    if given.test_fraction is not None:
        splits["train"], splits["test"] = carve_test(splits["train"], given.test_fraction)
    return FamilyData(
        class_names=names,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        shifts={name: splits[f"shifts/{name}"] for name in given.shifts},
        digest=_declared_digest(tree, names, splits),
        digests={
            name: listing_digest(listing)
            for name, listing in tree.splits.items()
            if name != "train" or given.test_fraction is None
        },
    )


def _names(declared: Declared, tree: DeclaredTree, report: Report) -> tuple[str, ...]:
    """What prompts call each class."""
    given = declared.declaration
    if given.class_names_file is None:
        names = {name: given.class_names.get(name) or plain_name(name) for name in tree.classes}
        for text in repeated(names, "class_names"):
            report(("class_names",), text)
        return tuple(names.values())
    file = declared.file.parent / Path(given.class_names_file).expanduser()
    try:
        found, wrong = names_in(file, tree.classes)
    except OSError as error:
        found, wrong = (), [f"{file} cannot be read: {error.strerror}"]
    for text in wrong:
        report(("class_names_file",), text)
    return found


def _declared_digest(tree: DeclaredTree, names: Sequence[str], splits: Mapping[str, Split]) -> str:
    """Over the classes, their names, and every image's split, class, path below the root and size.

    Neither where root and file lie counts, nor how the file says it.
    """
    sizes = {
        path: size
        for listing in tree.splits.values()
        for found in listing.values()
        for path, size in found.items()
    }
    digest = hashlib.sha256(b"declared/1\n")
    for folder, name in zip(tree.classes, names, strict=True):
        digest.update(f"class\0{folder}\0{name}\n".encode())
    for name in sorted(splits):
        split = splits[name]
        digest.update(f"split\0{name}\0{split.classes}\n".encode())
        for path, label in sorted(zip(split.ids, split.labels.tolist(), strict=True)):
            digest.update(f"image\0{label}\0{path}\0{sizes[path]}\n".encode())
    return digest.hexdigest()
