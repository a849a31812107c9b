"""How a folder of images is laid out: which folders are train, test and shifts, as far as seen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carft_core.errors import RequestError
from sweeps.starting.folders import Folder

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
