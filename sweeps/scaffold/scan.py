"""The layout of a folder of images."""

from __future__ import annotations

import filecmp
import itertools
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath

from PIL import Image

from carft_core.data.folders import EXTENSIONS, images, is_text, listed, name_files
from carft_core.data.splits import test_share
from carft_core.errors import RequestError

Place = tuple[int, int]
"""Device and inode, by which a folder is known whatever link leads to it."""


@dataclass(frozen=True)
class Folder:
    """One folder. What begins with a dot does not count."""

    name: str
    below: str
    """Where it lies, relative to the root; the root itself is `.`."""
    loose: int
    """Images that lie in it directly."""
    folders: tuple[Folder, ...]
    """Sorted by name."""
    others: Mapping[str, int]
    """Files that are no images: ending -> how many, at any depth."""
    misnamed: tuple[str, ...] = ()
    """Folders, at any depth, whose names are not UTF-8; they are not looked into."""

    @cached_property
    def total(self) -> int:
        """Images at any depth."""
        return self.loose + sum(folder.total for folder in self.folders)

    @property
    def filled(self) -> list[Folder]:
        """The folders in it that have images."""
        return [folder for folder in self.folders if folder.total]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the folders that have images."""
        return tuple(folder.name for folder in self.filled)

    def as_root(self) -> Folder:
        """The same as a root: paths are relative to it."""
        return _moved(self, self.below, ".")


def look(root: Path) -> Folder:
    """Everything below a folder. Raises OSError for what cannot be read."""
    return _look(root, ".", ())


def _look(path: Path, below: str, above: tuple[Place, ...]) -> Folder:
    status = path.stat()
    here = (status.st_dev, status.st_ino)
    with os.scandir(path) as entries:
        visible = sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda one: one.name
        )
    inner: list[Folder] = []
    misnamed: list[str] = []
    loose, others = 0, Counter[str]()
    for entry in visible:
        if entry.is_dir():
            status = entry.stat()
            where = entry.name if below == "." else f"{below}/{entry.name}"
            if not is_text(entry.name):
                misnamed.append(where)
            elif (status.st_dev, status.st_ino) not in (*above, here):  # else a link into a circle
                inner.append(_look(path / entry.name, where, (*above, here)))
        elif entry.name.lower().endswith(EXTENSIONS):
            loose += 1
        else:
            others[PurePath(entry.name).suffix.lower()] += 1
    for folder in inner:
        others.update(folder.others)
        misnamed += folder.misnamed
    return Folder(path.name, below, loose, tuple(inner), others, tuple(misnamed))


def _moved(folder: Folder, old: str, new: str) -> Folder:
    """Paths that began with `old` begin with `new`."""
    rest = folder.below.removeprefix(old).lstrip("/")
    below = rest or new
    return replace(
        folder, below=below, folders=tuple(_moved(one, old, new) for one in folder.folders)
    )


TEST_FRACTION = 0.2
ROLES = {
    "train": re.compile(r"(train|training|trn)([-_ ]?(\d+|set|images|data))?"),
    "val": re.compile(r"(val|valid|validation|dev)([-_ ]?(\d+|set|images|data))?"),
    "test": re.compile(r"(test|testing|tst)([-_ ]?(\d+|set|images|data))?"),
    "shifts": re.compile(r"shifts?|ood"),
}
ALIKE = 0.5
"""Folders that share this part of the classes of the smaller one are of the same classes."""


@dataclass
class Layout:
    """What each folder is taken for; folders are relative to `root`."""

    kind: str
    root: Path
    train: Folder
    val: Folder | None = None
    test: Folder | None = None
    """None: a part of train becomes one."""
    shifts: dict[str, Folder] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def recognise(top: Folder, root: Path) -> Layout:
    """Take a folder for one of the layouts that are known; `assumed` tells what was guessed.

    Raises RequestError when there are no images, or no folders of classes.
    """
    if not top.total:
        raise RequestError(f"there is no image in {root}")
    assumed: list[str] = []
    while not top.loose and len(inner := top.filled) == 1 and _role(inner[0].name) is None:
        root, top = root / inner[0].name, inner[0].as_root()
        assumed.append(f"looked into {root.name}/, the only folder with images in it")
    roles = _roles(top)
    if "train" in roles:
        layout = _of_splits(top, root, roles)
    elif len(top.filled) < 2:
        raise RequestError(
            f"{root} has no folders of classes: put the images of each class into a folder of "
            "its own, such as cat/ and dog/"
        )
    else:
        layout = _of_domains(top, root) or _of_classes(top, root)
    layout.assumed[:0] = assumed
    return layout


def plain(name: str) -> str:
    """What two spellings of a name share."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _role(name: str) -> str | None:
    return next((role for role, form in ROLES.items() if form.fullmatch(name.lower())), None)


def _roles(top: Folder) -> dict[str, Folder]:
    """Each role's folder; an exact name goes before one that is only like it."""
    found: dict[str, Folder] = {}
    for folder in sorted(top.filled, key=lambda item: (item.name not in ROLES, item.name)):
        role = _role(folder.name)
        if role is not None:
            found.setdefault(role, folder)
    return found


def _of_splits(top: Folder, root: Path, roles: dict[str, Folder]) -> Layout:
    """`train/` beside `test/`, `val/`, shifts."""
    layout = Layout("train and test", root, roles["train"])
    if not layout.train.classes:
        raise RequestError(f"{root / layout.train.name} has no folders of classes")
    for name in ("val", "test"):
        folder = roles.get(name)
        if folder is not None and not folder.classes:
            layout.assumed.append(
                f"left out {folder.name}/: it has no class folders, so nobody could score it"
            )
        elif folder is not None:
            setattr(layout, name, folder)
    if layout.test is None and layout.val is not None:
        layout.test, layout.val = layout.val, None
        layout.assumed.append(
            f"took {layout.test.name}/ for the test, since there is none: settings are chosen on "
            "a part of train, as papers report results on such a split"
        )
    elif layout.test is None:
        layout.assumed.append(_carved(layout.train.name))
    elif layout.test.name != "test":
        layout.assumed.append(f"took {layout.test.name}/ for the test")
    if layout.val is not None and layout.val.name != "val":
        layout.assumed.append(f"took {layout.val.name}/ for val, on which settings are chosen")
    if layout.val is None:
        layout.assumed.append("settings are chosen on a part of train that nothing trains on")
    _add_shifts(layout, top, roles)
    return layout


def _add_shifts(layout: Layout, top: Folder, roles: dict[str, Folder]) -> None:
    """What lies in `shifts/`, and folders beside train that have its classes."""
    inside = roles["shifts"].filled if "shifts" in roles else []
    beside = [folder for folder in top.filled if folder not in roles.values()]
    for folder in (*inside, *beside):
        if not alike(folder, layout.train):
            layout.assumed.append(f"left out {folder.below}/: it has no folders of train's classes")
            continue
        layout.shifts[shift_name(folder.name, layout.shifts)] = folder
        if folder in beside:
            layout.assumed.append(f"took {folder.below}/ for a shift: its folders are train's")


def _of_domains(top: Folder, root: Path) -> Layout | None:
    """`<domain>/<class>/<image>`, as DomainBed has it; None when the folders share no classes."""
    deep = [folder for folder in top.filled if folder.loose * 2 < folder.total and folder.classes]
    if len(deep) < 2:
        return None
    own = max(deep, key=lambda folder: folder.total)
    others = [folder for folder in deep if folder is not own and alike(folder, own)]
    if not others:
        return None
    layout = Layout("domains", root, own)
    for folder in others:
        layout.shifts[shift_name(folder.name, layout.shifts)] = folder
    layout.assumed.append(
        f"took the folders for domains, since they hold the same classes: {own.name}, which has "
        f"the most images, is in distribution, and {', '.join(layout.shifts)} are shifts"
    )
    layout.assumed.append(_carved(own.name))
    layout.assumed.append("settings are chosen on a part of train that nothing trains on")
    for folder in top.filled:
        if folder is not own and folder not in others:
            layout.assumed.append(f"left out {folder.name}/: it has no folders of {own.name}'s")
    return layout


def _of_classes(top: Folder, root: Path) -> Layout:
    """One folder of classes."""
    layout = Layout("classes", root, top)
    layout.assumed.append("took each folder for a class; there is no shift to measure")
    layout.assumed.append(_carved("each class"))
    layout.assumed.append("settings are chosen on a part of the rest that nothing trains on")
    return layout


def _carved(what: str) -> str:
    part = f"{100 * TEST_FRACTION:.0f} %"
    return f"there is no test: {part} of {what} become one, always the same images"


def alike(folder: Folder, train: Folder) -> bool:
    """Whether its folders are classes of train, by and large and in whatever spelling."""
    own, known = ({plain(name) for name in item.classes} for item in (folder, train))
    return bool(own) and len(own & known) >= ALIKE * min(len(own), len(known))


def shift_name(folder: str, taken: Sequence[str] | dict[str, Folder]) -> str:
    """A name that a metric can have."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", folder).strip("_") or "shift"
    candidates: Iterator[str] = (name if n == 1 else f"{name}_{n}" for n in range(1, 1000))
    return next(one for one in candidates if one != "mean" and one not in taken)


Images = Mapping[str, Mapping[str, int]]
"""Class folder -> path below the root -> size in bytes."""

LEFT_OUT = "left out the"


@dataclass
class ShiftRules:
    """What of a shift's folders is left out, and which class a folder of another name is."""

    exclude: list[str] = field(default_factory=list)
    rename: dict[str, str] = field(default_factory=dict)


@dataclass
class Survey:
    """A layout with its images, as the family file will declare them."""

    layout: Layout
    classes: tuple[str, ...]
    splits: dict[str, Images]
    """`train` (with what is carved from it), `val`, `test`, and the shifts by name."""
    exclude: list[str]
    rules: dict[str, ShiftRules]
    class_names_file: Path | None
    mend: list[str]
    """What the family refuses and only its owner can change."""

    @property
    def carves_test(self) -> bool:
        """Whether a part of train becomes the test."""
        return self.layout.test is None

    @property
    def test_images(self) -> dict[str, int]:
        """How many of each class are tested."""
        if not self.carves_test:
            return {name: len(found) for name, found in self.splits["test"].items()}
        train = self.splits["train"]
        return {name: test_share(len(found), TEST_FRACTION) for name, found in train.items()}

    @property
    def trained(self) -> int:
        """How many images are left for training and choosing, about."""
        whole = sum(len(found) for found in self.splits["train"].values())
        return whole - (sum(self.test_images.values()) if self.carves_test else 0)


def survey(layout: Layout) -> Survey:
    """List the images. Raises RequestError when less than two classes can be used."""
    mend: list[str] = []
    train = _images(layout, layout.train, mend)
    val = {} if layout.val is None else _images(layout, layout.val, mend)
    test = {} if layout.test is None else _images(layout, layout.test, mend)
    classes = _usable(layout, train, test)
    if layout.val is not None and (lacking := [name for name in classes if not val.get(name)]):
        layout.assumed.append(
            f"left out {layout.val.name}/: it has no images of {listed(lacking)}; settings are "
            "chosen on a part of train"
        )
        layout.val = None
        classes = _usable(layout, train, test)
    if len(classes) < 2:
        why = [text for text in layout.assumed if text.startswith(LEFT_OUT)]
        raise RequestError("; ".join([f"{layout.root}: fewer than two classes can be used", *why]))
    there = [*train, *test, *(val if layout.val is not None else ())]
    exclude = [name for name in dict.fromkeys(there) if name not in classes]
    splits = {"train": _only(train, classes)}
    for name, listing, folder in (("val", val, layout.val), ("test", test, layout.test)):
        if folder is not None:
            splits[name] = _only(listing, classes)
    files = name_files(layout.root)
    found = Survey(layout, classes, splits, exclude, {}, files[0] if files else None, mend)
    _add_shift_rules(found, set(train))
    mend.sort()
    return found


def _only(found: Images, classes: Sequence[str]) -> Images:
    return {name: found[name] for name in classes}


def _images(layout: Layout, folder: Folder, mend: list[str]) -> Images:
    """By class folder, empty ones too."""
    mend += [f"{name!r} is not a name in UTF-8; rename it" for name in folder.misnamed]
    return {one.name: dict(sorted(images(layout.root, one.below, mend))) for one in folder.folders}


def _usable(layout: Layout, train: Images, test: Images) -> tuple[str, ...]:
    """The classes that every in-distribution split can have; says which ones it leaves out."""
    carved = (layout.test is None) + (layout.val is None)
    least = 1 + carved
    few = [name for name, found in train.items() if len(found) < least]
    if few:
        why = f"fewer than {least} images" if least > 1 else "no images"
        _leave_out(layout, few, f"train has {why} of it")
    classes = [name for name in train if name not in few]
    if layout.test is not None:
        untested = [name for name in classes if not test.get(name)]
        unknown = [name for name in test if name not in train]
        if untested:
            _leave_out(layout, untested, f"{layout.test.name}/ has no images of it")
        if unknown:
            _leave_out(layout, unknown, f"{layout.train.name}/ has no such class")
        classes = [name for name in classes if name not in untested]
    return tuple(sorted(classes))


def _leave_out(layout: Layout, names: Sequence[str], why: str) -> None:
    one = "class" if len(names) == 1 else f"{len(names)} classes"
    text = f"{LEFT_OUT} {one} {listed(names)}: {why}"
    if text not in layout.assumed:
        layout.assumed.append(text)


def _add_shift_rules(found: Survey, known: set[str]) -> None:
    """Each shift that has a class, with the folders that are named otherwise."""
    layout = found.layout
    spellings: dict[str, list[str]] = {}
    for name in found.classes:
        spellings.setdefault(plain(name), []).append(name)
    for name, folder in list(layout.shifts.items()):
        rules, kept = ShiftRules(), dict[str, dict[str, int]]()
        for one, files in _images(layout, folder, found.mend).items():
            same = spellings.get(plain(one), [])
            target = one if one in found.classes else same[0] if len(same) == 1 else None
            if target is None or not files:
                rules.exclude += [one] if one not in known or one in found.classes else []
                continue
            if target != one:
                rules.rename[one] = target
            kept.setdefault(target, {}).update(files)
        if not kept:
            del layout.shifts[name]
            layout.assumed.append(f"left out the shift {name}: no class of it is left")
            continue
        found.splits[name], found.rules[name] = kept, rules
        _tell(layout, name, rules)


def _tell(layout: Layout, name: str, rules: ShiftRules) -> None:
    if rules.exclude:
        layout.assumed.append(
            f"left out of the shift {name}: {listed(rules.exclude)}, no class of train with images"
        )
    if rules.rename:
        pairs = [f"{folder} for {target}" for folder, target in rules.rename.items()]
        layout.assumed.append(f"in the shift {name} took {listed(pairs)}, by its spelling")


IMBALANCE = 10
"""The largest class over the smallest, from which on it is told."""
FEW_IN_ALL = 100
FEW_OF_A_CLASS = 5
FEW_TO_TRAIN = 10
SAMPLE = 24
"""Images that are opened, to see how large they are."""
UNREAD = (".gif", ".heic", ".heif", ".avif", ".svg", ".jp2", ".jxl")
NO_NAME = re.compile(r"n\d{8}|\d+|(class|label)[-_ ]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Sizes:
    """Of a sample of the images."""

    median: int | None
    """Of the longer sides, in pixels; None when none could be opened."""
    broken: tuple[str, ...]
    """Those that could not be opened."""
    seen: int
    """How many were tried."""


def sizes(found: Survey) -> Sizes:
    """Open some images, spread evenly over train."""
    by_class = list(found.splits["train"].values())
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_class[:: _step(by_class)]))
    chosen = itertools.islice((path for path in rounds if path is not None), SAMPLE)
    sides, broken = [], []
    for path in chosen:
        try:
            with Image.open(found.layout.root / path) as image:
                sides.append(max(image.size))
        except (OSError, ValueError, Image.DecompressionBombError):
            broken.append(path)
    median = round(statistics.median(sides)) if sides else None
    return Sizes(median, tuple(broken), len(sides) + len(broken))


def _step(classes: Sized) -> int:
    """So that not the first classes alone are seen where there are many."""
    return max(1, len(classes) // SAMPLE)


def doubts(found: Survey, top: Folder, seen: Sizes) -> Iterator[str]:
    """One sentence for each thing that may not be as it was meant."""
    yield from _numbers(found)
    yield from _shifts(found)
    yield from _names(found)
    yield from _files(found, top)
    if seen.broken:
        tried = f"{len(seen.broken)} of {seen.seen} images that were tried"
        yield f"{tried} cannot be opened: {listed(seen.broken)}"


def _numbers(found: Survey) -> Iterator[str]:
    train = {name: len(files) for name, files in found.splits["train"].items()}
    most, least = max(train, key=train.__getitem__), min(train, key=train.__getitem__)
    if train[most] >= IMBALANCE * train[least]:
        yield (
            f"the classes of train are uneven: {train[most]} images of {most}, {train[least]} of "
            f"{least}; accuracy is dominated by the large ones"
        )
    few = [name for name, count in train.items() if count < FEW_TO_TRAIN]
    if few:
        yield f"train has fewer than {FEW_TO_TRAIN} images of {listed(few)}"
    test = found.test_images
    total = sum(test.values())
    if total < FEW_IN_ALL or min(test.values()) < FEW_OF_A_CLASS:
        yield (
            f"the test is small: {total} images, {min(test.values())} in its smallest class; "
            f"{_uncertain(total)}"
        )


def _shifts(found: Survey) -> Iterator[str]:
    if not found.layout.shifts:
        yield "there is no shift, so nothing is measured out of distribution"
    for name in found.layout.shifts:
        files = found.splits[name]
        lacking = [one for one in found.classes if one not in files]
        if lacking:
            yield (
                f"the shift {name} has {len(files)} of {len(found.classes)} classes, not "
                f"{listed(lacking)}; on it the model chooses among its own alone"
            )
        total = sum(map(len, files.values()))
        if total < FEW_IN_ALL:
            yield f"the shift {name} is small: {total} images; {_uncertain(total)}"


def _uncertain(images: int) -> str:
    """Half of the widest 95 % interval of a proportion: 1.96 * sqrt(1/4 / n)."""
    return f"an accuracy on it is uncertain by up to {98 / images**0.5:.0f} points"


def _names(found: Survey) -> Iterator[str]:
    if found.class_names_file is None:
        nameless = [name for name in found.classes if NO_NAME.fullmatch(name)]
        if nameless:
            yield (
                f"prompts would speak of {listed(nameless)}: say what these are in class_names, or "
                "the zero-shot model cannot know them"
            )
    odd = [name for name in found.classes if name != name.strip() or "  " in name]
    if odd:
        yield f"names of class folders have spaces at an end, or two in a row: {listed(odd)}"


def _files(found: Survey, top: Folder) -> Iterator[str]:
    unread = {end: count for end, count in top.others.items() if end in UNREAD}
    if unread:
        told = [f"{count} {end}" for end, count in sorted(unread.items())]
        yield f"images of these kinds are not read; convert them: {', '.join(told)}"
    for folder in (found.layout.train, found.layout.test, *found.layout.shifts.values()):
        if folder is not None and folder.loose and folder.folders:
            where = found.layout.root.name if folder.below == "." else folder.below
            yield f"images outside the class folders of {where}/ are left out: {folder.loose}"
    copies = list(_copies(found))
    if copies:
        many = "1 image of test is" if len(copies) == 1 else f"{len(copies)} images of test are"
        yield f"{many} in train as well, such as {copies[0]}: tested on what was trained on"


def _copies(found: Survey) -> Iterator[str]:
    """Images of test whose name, size and content one of train has."""
    root = found.layout.root
    for name, files in found.splits.get("test", {}).items():
        known = {
            (Path(path).name, size): path for path, size in found.splits["train"][name].items()
        }
        for path, size in files.items():
            same = known.get((Path(path).name, size))
            if same is not None and filecmp.cmp(root / path, root / same, shallow=False):
                yield path
