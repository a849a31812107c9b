"""A family that is declared, not programmed: opened as its declaration says."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.data.base import Family, FamilyData, FoundSplit, Split
from carft_core.data.declaration import Declaration
from carft_core.data.declared_tree import DeclaredTree, Report, Route, read_declared
from carft_core.data.folder_tree import (
    listed,
    listing_digest,
    names_in,
    plain_name,
    refusal,
    repeated,
)
from carft_core.data.held_out import refuse_held_out
from carft_core.data.image_folder import folder_split, found_in
from carft_core.data.splits import carve_test
from carft_core.errors import RequestError, dotted

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig


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
            return _opened(self, root)

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
def _opened(declared: Declared, root: Path) -> FamilyData:
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
        digest=_digest(tree, names, splits),
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


def _digest(tree: DeclaredTree, names: Sequence[str], splits: Mapping[str, Split]) -> str:
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
