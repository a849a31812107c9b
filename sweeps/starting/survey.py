"""What a layout holds: images by split and class, and what must be left out for it to be usable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carft_core.data.folders import images, listed, name_files
from carft_core.data.splits import test_share
from carft_core.errors import RequestError
from sweeps.starting.folders import Folder
from sweeps.starting.layout import TEST_FRACTION, Layout, plain

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
    _add_shifts(found, set(train))
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


def _add_shifts(found: Survey, known: set[str]) -> None:
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
