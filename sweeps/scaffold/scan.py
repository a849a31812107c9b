"""A folder of images: its layout, its images by split and class, and what is doubtful in it."""

from __future__ import annotations

import itertools
import logging
import os
import re
import statistics
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from carft_sweep.carft_core.data.class_names import CLASS_FILE
from carft_sweep.carft_core.data.images import image_errors, open_image
from carft_sweep.carft_core.data.listing import (
    EXTENSIONS,
    ImageScan,
    Listing,
    join_names,
    unread_notes,
)
from carft_sweep.carft_core.data.splits import test_share
from carft_sweep.carft_core.errors import RequestError

logger = logging.getLogger(__name__)

TEST_FRACTION = 0.2
ROLES = {
    "train": re.compile(r"(train|training|trn)([-_ ]?(\d+|set|images|data))?"),
    "val": re.compile(r"(val|valid|validation|dev)([-_ ]?(\d+|set|images|data))?"),
    "test": re.compile(r"(test|testing|tst)([-_ ]?(\d+|set|images|data))?"),
    "shifts": re.compile(r"shifts?|ood"),
}
ALIKE = 0.5
"""Two folders have the same classes if they share this part of those of the smaller one."""
LEFT_OUT = "left out the"
FEW_IN_ALL = 100
FEW_TO_TRAIN = 10
SAMPLE = 24
"""Images that are opened, to see how large they are."""


@dataclass(frozen=True)
class Folder:
    """A folder with its images and subfolders, without those whose names begin with a dot."""

    path: Path
    loose: int
    """Images that lie in it directly."""
    folders: tuple[Folder, ...]
    """Sorted by name."""

    @property
    def name(self) -> str:
        """The folder's name: of a class folder the class."""
        return self.path.name

    @cached_property
    def total(self) -> int:
        """Number of images in the folder, at any depth."""
        return self.loose + sum(folder.total for folder in self.folders)

    @property
    def filled(self) -> list[Folder]:
        """Subfolders with images."""
        return [folder for folder in self.folders if folder.total]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the subfolders with images."""
        return tuple(folder.name for folder in self.filled)


def scan_folder(path: Path, above: tuple[tuple[int, int], ...] = ()) -> Folder:
    """Return a folder with all below it. `above` has (device, inode) of the folders above it, into
    which no link is followed. Raises OSError for an unreadable folder."""
    status = path.stat()
    inode = (status.st_dev, status.st_ino)
    loose = 0
    folders: list[Folder] = []
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            status = entry.stat()
            if (status.st_dev, status.st_ino) in (*above, inode):
                continue  # a link into a circle
            folders.append(scan_folder(path / entry.name, (*above, inode)))
        else:
            loose += entry.name.lower().endswith(EXTENSIONS)
    return Folder(path, loose, tuple(folders))


@dataclass
class Layout:
    """A recognised layout: which folder is used as what."""

    kind: str
    root: Path
    train: Folder
    val: Folder | None = None
    test: Folder | None = None
    """None: a part of train becomes the test."""
    shifts: dict[str, Folder] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def below(self, folder: Folder) -> str:
        """Return a folder's path relative to the root, which is `.` itself."""
        return folder.path.relative_to(self.root).as_posix()


def recognise_layout(top: Folder) -> Layout:
    """Return the known layout that a folder has; `assumed` lists what was guessed. Raises
    RequestError for a folder without images, or without folders of classes."""
    if not top.total:
        raise RequestError(f"there is no image in {top.path}")
    assumed: list[str] = []
    while not top.loose and len(inner := top.filled) == 1 and _role(inner[0].name) is None:
        top = inner[0]
        assumed.append(f"looked into {top.name}/, the only folder with images in it")
    roles = _roles(top)
    if "train" in roles:
        layout = _split_layout(top, roles)
    elif len(top.filled) < 2:
        raise RequestError(
            f"{top.path} has no folders of classes: put the images of each class into a folder of "
            "its own, such as cat/ and dog/"
        )
    else:
        layout = _domain_layout(top) or _class_layout(top)
    layout.assumed[:0] = assumed
    logger.info("%s is of the layout %r", top.path, layout.kind)
    return layout


def _role(name: str) -> str | None:
    return next((role for role, form in ROLES.items() if form.fullmatch(name.lower())), None)


def _roles(top: Folder) -> dict[str, Folder]:
    """Return the subfolders of `top` with images whose names mean train, val, test or shifts, by
    these words; for each word an exact name wins over a variant such as `training`."""
    roles: dict[str, Folder] = {}
    for folder in sorted(top.filled, key=lambda item: (item.name not in ROLES, item.name)):
        role = _role(folder.name)
        if role is not None:
            roles.setdefault(role, folder)
    return roles


def _split_layout(top: Folder, roles: dict[str, Folder]) -> Layout:
    """Return the layout of the folders `roles`: `train/` beside `test/`, `val/`, shifts."""
    layout = Layout("train and test", top.path, roles["train"])
    if not layout.train.classes:
        raise RequestError(f"{layout.train.path} has no folders of classes")
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
    inside = roles["shifts"].filled if "shifts" in roles else []
    beside = [folder for folder in top.filled if folder not in roles.values()]
    for folder in (*inside, *beside):
        place = layout.below(folder)
        if not _is_alike(folder, layout.train):
            layout.assumed.append(f"left out {place}/: it has no folders of train's classes")
            continue
        layout.shifts[_shift_name(folder.name, layout.shifts)] = folder
        if folder in beside:
            layout.assumed.append(f"took {place}/ for a shift: its folders are train's")
    return layout


def _domain_layout(top: Folder) -> Layout | None:
    """Return DomainBed's layout `<domain>/<class>/<image>`; None without common classes."""
    deep = [folder for folder in top.filled if folder.loose * 2 < folder.total and folder.classes]
    if len(deep) < 2:
        return None
    own = max(deep, key=lambda folder: folder.total)
    others = [folder for folder in deep if folder is not own and _is_alike(folder, own)]
    if not others:
        return None
    layout = Layout("domains", top.path, own)
    for folder in others:
        layout.shifts[_shift_name(folder.name, layout.shifts)] = folder
    is_largest = own.total > max(folder.total for folder in others)
    why = "which has the most images" if is_largest else "the first"
    several = f"; the shifts are {', '.join(layout.shifts)}"
    rest = several if len(others) > 1 else f", and {next(iter(layout.shifts))} is a shift"
    layout.assumed += [
        f"took the folders for domains, since they hold the same classes: {own.name}, {why}, "
        f"is in distribution{rest}",
        _carved(own.name),
        "settings are chosen on a part of train that nothing trains on",
        *(
            f"left out {folder.name}/: it has no folders of {own.name}'s"
            for folder in top.filled
            if folder is not own and folder not in others
        ),
    ]
    return layout


def _class_layout(top: Folder) -> Layout:
    """Return the layout of a single folder of classes."""
    layout = Layout("classes", top.path, top)
    layout.assumed += [
        "took each folder for a class; there is no shift to measure",
        _carved("each class"),
        "settings are chosen on a part of the rest that nothing trains on",
    ]
    return layout


def _carved(source: str) -> str:
    part = f"{100 * TEST_FRACTION:.0f} %"
    return f"there is no test: {part} of {source} becomes one, always the same images"


def _is_alike(folder: Folder, train: Folder) -> bool:
    """Return whether a folder's subfolders are, by and large, the classes of train."""
    own, known = set(folder.classes), set(train.classes)
    return bool(own) and len(own & known) >= ALIKE * min(len(own), len(known))


def _shift_name(folder: str, taken: Collection[str]) -> str:
    """Return a name for a shift that can be part of a metric's name."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", folder).strip("_") or "shift"
    candidates = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
    return next(name for name in candidates if name != "mean" and name not in taken)


@dataclass
class Inventory:
    """A layout with its images, as the family file will declare them."""

    layout: Layout
    classes: tuple[str, ...]
    splits: dict[str, Listing]
    """`train` (with what is carved from it), `val`, `test`, and the shifts by name."""
    exclude: list[str]
    class_names_file: Path | None
    problems: list[str]
    """What the family refuses and only the owner of the images can change."""
    unread: list[str]
    """Pictures in formats that are not read."""

    @property
    def test_counts(self) -> dict[str, int]:
        """Number of test images of each class."""
        if self.layout.test is not None:
            return {name: len(paths) for name, paths in self.splits["test"].items()}
        train = self.splits["train"]
        return {name: test_share(len(paths), TEST_FRACTION) for name, paths in train.items()}

    @property
    def trained(self) -> int:
        """Approximate number of images left for training and selection."""
        whole = sum(map(len, self.splits["train"].values()))
        return whole if self.layout.test is not None else whole - sum(self.test_counts.values())


def list_images(layout: Layout) -> Inventory:
    """Return the images of each split. Raises RequestError for less than two usable classes."""
    scan = ImageScan(layout.root)

    def listing(folder: Folder | None) -> Listing:
        folders = () if folder is None else folder.folders
        return {folder.name: dict(sorted(scan.images(layout.below(folder)))) for folder in folders}

    train, val, test = listing(layout.train), listing(layout.val), listing(layout.test)
    classes = _usable_classes(layout, train, test)
    if layout.val is not None and (lacking := [name for name in classes if not val.get(name)]):
        layout.assumed.append(
            f"left out {layout.val.name}/: it has no images of {join_names(lacking)}; settings are "
            "chosen on a part of train"
        )
        layout.val = None
        classes = _usable_classes(layout, train, test)
    if len(classes) < 2:
        reasons = [text for text in layout.assumed if text.startswith(LEFT_OUT)]
        problem = f"{layout.root}: fewer than two classes can be used"
        raise RequestError("; ".join([problem, *reasons]))
    splits: dict[str, Listing] = {"train": train}
    splits |= {} if layout.val is None else {"val": val}
    splits |= {} if layout.test is None else {"test": test}
    exclude = [
        name for name in dict.fromkeys(itertools.chain(*splits.values())) if name not in classes
    ]
    splits = {split: {name: named[name] for name in classes} for split, named in splits.items()}
    for shift, folder in list(layout.shifts.items()):
        paths = listing(folder)
        usable = {name: paths[name] for name in paths if paths[name] and name not in exclude}
        if usable:
            splits[shift] = usable
        else:
            del layout.shifts[shift]
            layout.assumed.append(f"left out the shift {shift}: no class of it is left")
    file = layout.root / CLASS_FILE
    names_file = file if file.exists() else None
    problems = sorted(scan.problems)
    return Inventory(layout, classes, splits, exclude, names_file, problems, scan.unread)


def _usable_classes(layout: Layout, train: Listing, test: Listing) -> tuple[str, ...]:
    """Return the classes that every ID split has; add the others to `layout.assumed`."""
    least = 1 + (layout.test is None) + (layout.val is None)
    small = [name for name, paths in train.items() if len(paths) < least]
    amount = f"fewer than {least} images" if least > 1 else "no images"
    _leave_out(layout, small, f"train has {amount} of it")
    classes = [name for name in train if name not in small]
    if layout.test is not None:
        untested = [name for name in classes if not test.get(name)]
        _leave_out(layout, untested, f"{layout.test.name}/ has no images of it")
        unknown = [name for name in test if name not in train]
        _leave_out(layout, unknown, f"{layout.train.name}/ has no such class")
        classes = [name for name in classes if name not in untested]
    return tuple(sorted(classes))


def _leave_out(layout: Layout, names: Sequence[str], reason: str) -> None:
    if not names:
        return
    what = "class" if len(names) == 1 else f"{len(names)} classes"
    text = f"{LEFT_OUT} {what} {join_names(names)}: {reason}"
    if text not in layout.assumed:
        layout.assumed.append(text)


def usual_side(inventory: Inventory) -> int | None:
    """Return the median of the longer sides of some images of train, in pixels; None where none of
    them can be opened."""
    by_class = list(inventory.splits["train"].values())
    step = max(1, len(by_class) // SAMPLE)  # not of the first classes alone where there are many
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*by_class[::step]))
    sides = []
    for path in itertools.islice(filter(None, rounds), SAMPLE):
        file = inventory.layout.root / path
        with suppress(RequestError), image_errors(path), open_image(file) as image:
            sides.append(max(image.size))
    return round(statistics.median(sides)) if sides else None


def find_doubts(inventory: Inventory) -> Iterator[str]:
    """Yield a sentence for each thing in the folder that may be a mistake, such as few images."""
    layout, splits = inventory.layout, inventory.splits
    yield from unread_notes(inventory.unread)
    small = [name for name, paths in splits["train"].items() if len(paths) < FEW_TO_TRAIN]
    if small:
        yield f"train has fewer than {FEW_TO_TRAIN} images of {join_names(small)}"
    counts = {"the test": sum(inventory.test_counts.values())}
    for name in layout.shifts:
        counts[f"the shift {name}"] = sum(map(len, splits[name].values()))
        lacking = [label for label in inventory.classes if label not in splits[name]]
        if lacking:
            count = len(inventory.classes) - len(lacking)
            yield (
                f"the shift {name} has {count} of {len(inventory.classes)} classes, not "
                f"{join_names(lacking)}; on it the model chooses among its own alone"
            )
    for split, count in counts.items():
        if count < FEW_IN_ALL:
            yield f"{split} is small: {count} images"
    for folder in (layout.train, layout.test, *layout.shifts.values()):
        if folder is not None and folder.loose and folder.folders:
            where = layout.root.name if folder.path == layout.root else layout.below(folder)
            yield f"images outside the class folders of {where}/ are left out: {folder.loose}"
