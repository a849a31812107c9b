"""A user's own images in class folders, as they lie or as a family file declares it."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import torch

from carft_sweep.carft_core.data.base import (
    DataConfig,
    Family,
    FamilyData,
    Files,
    Split,
    cache_open,
    refuse_held_out,
)
from carft_sweep.carft_core.data.class_names import CLASS_FILE, names_in, plain_name, repeated
from carft_sweep.carft_core.data.families.declaration import Declaration, ShiftFolders, shift_name
from carft_sweep.carft_core.data.folders import readable, require_folder
from carft_sweep.carft_core.data.images import read_rgb
from carft_sweep.carft_core.data.listing import (
    ImageScan,
    Listing,
    copies_of_training,
    join_names,
    listing_digest,
    nearest,
    no_class_folders,
    refusal,
    unread_notes,
    visible_folders,
)
from carft_sweep.carft_core.data.splits import IN_DISTRIBUTION, TRAINING_SPLITS, carve_test
from carft_sweep.carft_core.errors import RequestError, Route, dotted

ProblemSink = Callable[[Route, str], None]
"""Called with a key of the declaration, such as `("shifts", "night")`, and its problem."""
ClassFolders = Mapping[str, Sequence[str]]
"""Class folder -> its paths below the root, in the order in which their parents are declared."""


@dataclass(frozen=True)
class Tree:
    """The listed images of every split; of folders with mistakes, what is left without these."""

    classes: tuple[str, ...]
    """Train's class folders that count, sorted; a label is an index into them."""
    splits: Mapping[str, Listing]
    """`train`, `val` and `test` as far as they are declared, and the shifts as `shifts/<name>`."""
    unread: tuple[str, ...] = ()
    """Paths of pictures in formats that are not read."""


def declared_folders(declared: Declaration) -> dict[str, Sequence[str]]:
    """Return the folders of each declared split, by its name in `Tree.splits`."""
    folders = {"train": declared.train, "val": declared.val, "test": declared.test}
    folders |= {f"shifts/{name}": shift.folders for name, shift in declared.shifts.items()}
    return {name: paths for name, paths in folders.items() if paths is not None}


@dataclass(eq=False)
class Reader:
    """A reader of folders, which lists the images that a declaration names below a root."""

    declared: Declaration
    root: Path
    report: ProblemSink
    advises: bool = True
    """Whether a message may advise to change the declaration."""
    with_empty: bool = False
    """Whether empty files are listed, as images that cannot be read."""

    def __post_init__(self) -> None:
        self.train: ClassFolders = {}
        self.classes: tuple[str, ...] = ()
        self._unread: list[str] = []

    def read(self) -> Tree:
        """Return the listed images of every split. Raises OSError for an unreadable folder."""
        folders_of = {
            name: self._class_folders(name, paths)
            for name, paths in declared_folders(self.declared).items()
        }
        self.train, splits = folders_of["train"], {}
        self.classes = self._classes(
            {folder for name in IN_DISTRIBUTION for folder in folders_of.get(name, ())}
        )
        for name, folders in folders_of.items():
            if self.classes and folders:
                folders = self._by_class(_route(name), folders)
            splits[name] = self._listing(_route(name), folders)
        self._check_apart(splits)
        return Tree(self.classes, splits, tuple(self._unread))

    def _class_folders(self, name: str, folders: Sequence[str]) -> ClassFolders:
        """Return the class folders within `folders`, those of the split `name`, joined by class."""
        route = _route(name)
        places: dict[str, list[str]] = {}
        for index, folder in enumerate(folders):
            where = route if len(folders) == 1 else (*route, index)
            path = self.root / folder
            if folder in folders[:index]:
                self.report(where, f"{folder}/ is in the list twice")
            elif not path.is_dir():
                self.report(where, _missing(self.root, folder))
            elif not (names := visible_folders(path)):
                self.report(where, f"{folder}/ {no_class_folders(path)}")
            else:
                for below in names:
                    place = below if folder == "." else f"{folder}/{below}"
                    places.setdefault(below, []).append(place)
        return places

    def _classes(self, anywhere: Collection[str]) -> tuple[str, ...]:
        """Return the sorted names of the classes: train's folders, or those that `classes` lists,
        without `exclude`. Report fewer than two, and names without a folder; one of `exclude` may
        be in `anywhere`, the class folders of train, val and test."""
        declared, train = self.declared, self.train
        if not train:
            return ()
        of_train = "class folder of train"
        self._check_names(("classes",), of_train, enumerate(declared.classes or ()), train)
        self._check_names(("exclude",), "class folder", enumerate(declared.exclude or ()), anywhere)
        chosen = {*train} if declared.classes is None else {*declared.classes} & {*train}
        classes = sorted(chosen - {*(declared.exclude or ())})
        if len(classes) < 2:
            only = f"the single class {classes[0]!r}" if classes else "no class"
            self.report(("train",), f"has {only}; two are the least")
        names = declared.class_names
        self._check_names(("class_names",), of_train, zip(names, names, strict=True), train)
        return tuple(classes)

    def _check_names(
        self,
        route: Route,
        kind: str,
        names: Iterable[tuple[str | int, str]],
        allowed: Collection[str],
        shown: Collection[str] = (),
    ) -> None:
        """Report each (key, name) whose name is not among `allowed`. Messages list `shown`, if
        any."""
        for key, name in names:
            if name not in allowed:
                others = sorted(shown or allowed)
                near = nearest(name, others)
                message = f"no {kind} is named {name!r}{near}; there are {join_names(others)}"
                self.report((*route, key), message)

    def _by_class(self, route: Route, folders: ClassFolders) -> ClassFolders:
        """Return a split's class folders in the order of the classes, without excluded ones."""
        if route[0] == "shifts":
            folders = self._of_shift(route, self.declared.shifts[str(route[1])], folders)
        else:
            self._check_complete(route, folders)
        return {name: folders[name] for name in self.classes if name in folders}

    def _check_complete(self, route: Route, folders: ClassFolders) -> None:
        """Report the classes that an in-distribution split lacks, or has beside those of train."""
        allowed = {*self.train, *(self.declared.exclude or ())}
        self._check_strange(route, [name for name in folders if name not in allowed])
        missing = [name for name in self.classes if name not in folders]
        if missing:
            advice = "; `exclude` leaves classes out" if self.advises else ""
            self.report(route, f"lacks classes that train has: {join_names(missing)}{advice}")

    def _check_strange(self, route: Route, strange: Sequence[str], advice: str = "") -> None:
        if strange:
            near = nearest(strange[0], self.classes)
            advice = advice or f"; train has {len(self.classes)}: {join_names(self.classes)}"
            message = f"has folders that are no class of train: {join_names(strange)}{near}{advice}"
            self.report(route, message)

    def _of_shift(self, route: Route, shift: ShiftFolders, folders: ClassFolders) -> ClassFolders:
        """Return a shift's folders by class, as its `classes`, `exclude` and `rename` say."""
        train, classes = self.train, self.classes
        only, excluded, renamed = shift.classes or (), shift.exclude or (), shift.rename
        allowed, shown = {*folders, *train}, {*classes, *folders}
        sources, at_rename = zip(renamed, renamed, strict=True), (*route, "rename")
        self._check_names((*route, "classes"), "class", enumerate(only), classes)
        named = enumerate(excluded)
        self._check_names((*route, "exclude"), "class or folder", named, allowed, shown)
        self._check_names(at_rename, "folder of the shift", sources, folders)
        self._check_names(at_rename, "class", renamed.items(), train, classes)
        kept: dict[str, list[str]] = {}
        strange = []
        for folder, places in folders.items():
            target = renamed.get(folder, folder)
            if folder in excluded or target in excluded:
                continue
            if target in classes and target in (only or classes):
                kept.setdefault(target, []).extend(places)
            elif target not in train and shift.classes is None:
                strange.append(folder)
        advice = "; `rename` says which class a folder is, `exclude` leaves it out"
        self._check_strange(route, strange, advice if self.advises else "")
        if not kept and not strange:
            self.report(route, "no class of it is left")
        for index, name in enumerate(only):
            if name in classes and name not in kept:
                self.report((*route, "classes", index), f"{name!r} has no folder here")
        return kept

    def _listing(self, route: Route, folders: ClassFolders) -> Listing:
        """Return the images by class, in the order of their paths."""
        scan = ImageScan(self.root, self.with_empty)
        listing = {
            name: dict(sorted(chain.from_iterable(map(scan.images, places))))
            for name, places in folders.items()
        }
        self._unread += scan.unread
        for problem in scan.problems:
            self.report(route, problem)
        empty = [name for name, files in listing.items() if not files]
        if empty:
            advice = "; `exclude` leaves them out" if self.advises else ""
            self.report(route, f"has class folders without images: {join_names(empty)}{advice}")
        return listing

    def _check_apart(self, splits: Mapping[str, Listing]) -> None:
        """Report images that val shares with train, or a measured split with train or val."""
        paths = {
            name: frozenset(chain.from_iterable(listing.values()))
            for name, listing in splits.items()
        }
        for name, own in paths.items():
            for other in TRAINING_SPLITS:
                if other not in paths or other == name or (name, other) == ("train", "val"):
                    continue
                shared = sorted(own & paths[other])
                if shared:
                    message = f"shares {len(shared)} images with {other}, such as {shared[0]}"
                    self.report(_route(name), message)


def _route(split: str) -> Route:
    """Return the key in a family file under which the folders of a split are declared."""
    return tuple(split.split("/", 1))


def _missing(root: Path, folder: str) -> str:
    """Return a message that a folder is missing, with the existing folders."""
    parent = (root / folder).parent
    if not parent.is_dir():
        return f"there is no {folder}/ in {root}"
    names = visible_folders(parent)
    return (
        f"there is no {folder}/ in {root}{nearest(Path(folder).name, names)}; "
        f"there are {join_names(names) or 'no folders'}"
    )


LAYOUT = (
    "expected train/<class>/<image>, test/<class>/<image>, optionally val/<class>/<image> and "
    "shifts/<name>/<class>/<image>"
)


class Layout:
    """The layout of a data root: which folder is which split. Here, without a family file, folders
    are named as the splits are."""

    advises: ClassVar[bool] = False
    """Whether a message may advise to change the declaration."""

    def root_of(self, config: DataConfig) -> Path:
        """Return the folder that `data.root` names. Raises RequestError where there is none."""
        if config.root is None:
            raise RequestError(f"data.root: which folder holds the images? image_folder {LAYOUT}")
        refuse_held_out(
            config, "leave the field out and put what is to be held out into shifts/<name>/"
        )
        return require_folder(Path(config.root), f"; {LAYOUT}")

    def declare(self, root: Path, report: ProblemSink) -> Declaration:
        """Return the declaration of the folders that exist; an absent split has no folders."""
        folders, names_file = visible_folders(root), root / CLASS_FILE
        shifts = visible_folders(root / "shifts") if "shifts" in folders else []
        _report_misnamed(folders, report)
        for name in shifts:
            try:
                shift_name(name)
            except ValueError as error:
                report(("shifts", name), f"{error}; rename it")
        # Not validated: what is wrong with these names has been reported, with the folder's.
        return Declaration.model_construct(
            name="image_folder",
            train=("train",) if "train" in folders else (),
            val=("val",) if "val" in folders else None,
            test=("test",) if "test" in folders else (),
            shifts={
                name: ShiftFolders.model_construct(folders=(f"shifts/{name}",)) for name in shifts
            },
            class_names_file=str(names_file) if names_file.exists() else None,
        )

    def message(self, route: Route, problem: str) -> str:
        """Return the text of a problem, preceded by the folder that has it."""
        folder = f"{'/'.join(map(str, route))}/"
        is_named = problem.startswith(folder) or route[0] in ("class_names", "class_names_file")
        return problem if is_named else f"{folder} {problem}"

    def line(self, route: Route) -> int:
        """Return 0, since a layout without a family file has no lines."""
        del route
        return 0

    def error_heading(self, root: Path) -> str:
        """Return the first line of an error message, with the expected layout."""
        return f"data.root: {root} cannot be used ({LAYOUT}):"

    def open(self, config: DataConfig) -> FamilyData:
        """Return the data below `data.root`, else below the declared root; opened once in a
        process. Raises RequestError with every mistake at once. Images are not decoded here: a
        broken one raises when it is read."""
        root = self.root_of(config)
        with readable():
            return _open_data(self, root, config.bad_files)


@cache_open(4)
def _open_data(layout: Layout, root: Path, bad_files: str) -> FamilyData:
    problems: dict[str, int] = {}

    def report(route: Route, problem: str) -> None:
        problems[layout.message(route, problem)] = layout.line(route)

    declared = layout.declare(root, report)
    skips = bad_files == "skip"
    tree = Reader(declared, root, report, layout.advises, skips).read()
    names = _names(
        declared, tree.classes, report, where="class_names" if layout.advises else "classes.json"
    )
    if declared.test_fraction is not None:
        least = 2 if declared.val else 3
        small = [name for name, files in tree.splits["train"].items() if 0 < len(files) < least]
        if small:
            report(
                ("test_fraction",),
                f"a class needs {least} images of which one becomes a test; there are less of "
                f"{join_names(small)}; add images, or `exclude` it",
            )
    if problems:
        ordered = sorted(problems, key=lambda text: problems[text])
        raise RequestError(refusal(layout.error_heading(root), ordered))
    splits = {name: _split(root, listing, tree.classes) for name, listing in tree.splits.items()}
    digests = {name: listing_digest(listing) for name, listing in tree.splits.items()}
    if declared.test_fraction is not None:
        splits["train"], splits["test"] = carve_test(splits["train"], declared.test_fraction)
        del digests["train"]
    # A carved test's images have rows among train's, and an image's row decides its views.
    trained = TRAINING_SPLITS if declared.test_fraction is None else IN_DISTRIBUTION
    of_training = {name: splits[name] for name in trained if name in splits}
    return FamilyData(
        class_names=names,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        shifts={name: splits[f"shifts/{name}"] for name in declared.shifts},
        digest=_digest(tree, names, splits),
        training_digest=_digest(tree, names, of_training),
        digests=digests,
        notes=(
            *copies_of_training(root, tree.splits),
            *(
                f"ood/{name} has {len(shown)} of {len(names)} classes; there the model chooses "
                "among these alone, so it is easier than id/test"
                for name in declared.shifts
                if (shown := splits[f"shifts/{name}"].classes) is not None
            ),
            *unread_notes(tree.unread),
        ),
    )


def _names(
    declared: Declaration, classes: Sequence[str], report: ProblemSink, *, where: str
) -> tuple[str, ...]:
    """Return each class's name for prompts; report problems, in which `where` names the source."""
    if declared.class_names_file is None:
        names = {name: declared.class_names.get(name) or plain_name(name) for name in classes}
        for problem in repeated(names, where):
            report(("class_names",), problem)
        return tuple(names.values())
    file = Path(declared.class_names_file)
    try:
        found, problems = names_in(file, classes)
    except OSError as error:
        found, problems = (), [f"{file} cannot be read: {error.strerror}"]
    for problem in problems:
        report(("class_names_file",), problem)
    return found


def _split(root: Path, listing: Listing, classes: Sequence[str]) -> Split:
    """Return the split with the images of a listing, in the order of `classes`."""
    ids = tuple(path for name in classes for path in listing.get(name, ()))
    counts = torch.tensor([len(listing.get(name, ())) for name in classes])
    present = tuple(index for index, name in enumerate(classes) if name in listing)
    return Split(
        ids=ids,
        labels=torch.repeat_interleave(torch.arange(len(classes)), counts),
        source=Files(root, pa.array(ids, pa.string()), read_rgb),
        classes=None if len(present) == len(classes) else present,
    )


def _digest(tree: Tree, names: Sequence[str], splits: Mapping[str, Split]) -> str:
    """Return a digest of the classes, their names, and every image's split, class, path below the
    root and size in bytes; reading a million images would take minutes. The place of the root does
    not count, nor the wording of a family file."""
    sizes = {
        path: size
        for listing in tree.splits.values()
        for files in listing.values()
        for path, size in files.items()
    }
    digest = hashlib.sha256(b"images/2\n")
    for folder, name in zip(tree.classes, names, strict=True):
        digest.update(f"class\0{folder}\0{name}\n".encode())
    for name in sorted(splits):
        split = splits[name]
        digest.update(f"split\0{name}\0{split.classes}\n".encode())
        for path, label in sorted(zip(split.ids, split.labels.tolist(), strict=True)):
            digest.update(f"image\0{label}\0{path}\0{sizes[path]}\n".encode())
    return digest.hexdigest()


def _report_misnamed(folders: Sequence[str], report: ProblemSink) -> None:
    """Report missing splits, and folders whose names look like a split's."""
    splits = (*IN_DISTRIBUTION, "shifts")
    others = [name for name in folders if name not in splits]
    for name in splits:
        if name in folders:
            continue
        like = [other for other in others if other.lower().startswith(name)]
        like += difflib.get_close_matches(name, others, n=1, cutoff=0.75)
        if name in ("train", "test"):
            report((name,), "is missing" + (f"; is it {like[0]}/?" if like else ""))
        elif like:
            report(
                (like[0],),
                f"is not read, and there is no {name}/; rename it to {name}/, or to .{like[0]}/ "
                "if it is to be left out",
            )


OWN_IMAGES: Mapping[str, object] = {
    "data.augmentation": "wise_ft",
    "optim.batch_size": 32,
    "optim.epochs": 20,
}
"""Defaults for some hundred images: ImageNet's batches of 512 would make a step or two of an
epoch."""
FIXED = Layout()
IMAGE_FOLDER = Family(
    name="image_folder",
    summary="your own images, in class folders under data.root",
    open=FIXED.open,
    defaults={**OWN_IMAGES, "prompts.classes": "openai", "prompts.contexts": "openai"},
)


@dataclass(frozen=True, eq=False)
class Declared(Layout):
    """The layout that a family file declares. It equals nothing but itself."""

    declaration: Declaration
    file: Path
    """The absolute path; `root` and `class_names_file` are relative to its folder."""
    text: str
    """The file's text."""
    lines: Mapping[Route, int]
    """The line of each key in the file, for messages."""

    advises = True

    def family(self, defaults: Mapping[str, object]) -> Family:
        """Return the family to register; its `defaults` of a trial's fields override OWN_IMAGES."""
        given = self.declaration
        known = {**OWN_IMAGES, **defaults}
        return Family(given.name, given.summary, self.open, known, given.domains)

    @property
    def root(self) -> Path:
        """The folder of all images that the family file declares."""
        return self.file.parent / Path(self.declaration.root).expanduser()

    def root_of(self, config: DataConfig) -> Path:
        """Return the root that `data.root` names, else the declared one."""
        refuse_held_out(
            config,
            "leave the field out, and declare what is held out as one of the shifts in "
            f"{self.file.name}",
        )
        if config.root is not None:
            return require_folder(Path(config.root))
        return require_folder(self.root, named=self.place(("root",)))

    def declare(self, root: Path, report: ProblemSink) -> Declaration:
        """Return the declaration in the family file, whatever folders exist."""
        del root, report
        if self.declaration.class_names_file is None:
            return self.declaration
        file = self.file.parent / Path(self.declaration.class_names_file).expanduser()
        return self.declaration.model_copy(update={"class_names_file": str(file)})

    def place(self, route: Route) -> str:
        """Return `birds.family.yaml:7: shifts.night`, without the line where it is unknown."""
        line = self.line(route)
        return f"{self.file.name}{f':{line}' if line else ''}: {dotted(route)}"

    def message(self, route: Route, problem: str) -> str:
        """Return the text of a problem, preceded by its line in the family file."""
        return f"{self.place(route)}: {problem}"

    def line(self, route: Route) -> int:
        """Return the line of the key `route`, else of the nearest key around it; 0 without one."""
        while route and route not in self.lines:
            route = route[:-1]
        return self.lines.get(route, 0) if route else 0

    def error_heading(self, root: Path) -> str:
        """Return the first line of an error message, with the family's name."""
        return f"data.family: {self.declaration.name} is not as declared in {root}:"
