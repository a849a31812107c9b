"""Write the first family file and sweep file for a folder of images."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from carft_sweep.carft_core.config.registry import NAME
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.class_names import plain_name
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import atomic_file
from carft_sweep.sweeps.plan.prospects import find_obstacles
from carft_sweep.sweeps.scaffold import scan
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM
from carft_sweep.tracking.program import program

NUMBERED = re.compile(r"\d+[ ._-]+(?=[A-Za-z])")


def family_name(folder: str, taken: Collection[str]) -> str:
    """Return a family's name for a folder's: a-z, digits and `_`; with `my_` if it is taken."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"images_{name}".rstrip("_")
    return f"my_{name}" if name in taken else name


def class_names(folders: Sequence[str]) -> Mapping[str, str]:
    """Return a name for each folder: underscores become spaces, a leading number is dropped.
    Folders that would get the same name keep their own."""
    short = {folder: plain_name(NUMBERED.sub("", folder, count=1)) for folder in folders}
    names = list(short.values())
    return {
        folder: name if names.count(name) == 1 and name else folder
        for folder, name in short.items()
    }


PLAIN = re.compile(r"[A-Za-z_][\w./-]*( [\w./-]+)*", re.ASCII)
WORDS = re.compile(r"true|false|null", re.IGNORECASE)
MOST_NAMES = 2000
TINY = 64
"""The longest side, in pixels, of images that suit the built-in model, which sees 32."""
STEPS = 300
"""Least steps of a run, where the range `EPOCHS` allows it."""
EPOCHS = (3, 20)
SEEDS = tuple(range(SEEDS_FOR_CLAIM))
TRAINED = ("fine_tune", "car_ft")
"""The algorithms of the sweep that train."""


def budget(images: int) -> tuple[int, int]:
    """Return a modest number of epochs and a batch size for this number of training images."""
    size = 512 if images >= 20_000 else 128 if images >= 2_000 else 32
    epochs = -(-STEPS * size // max(1, images))
    return min(max(epochs, EPOCHS[0]), EPOCHS[1]), size


def family_text(
    inventory: scan.Inventory, name: str, root: str, sweep_file: str, names_file: str
) -> str:
    """Return the text of the family file; `names_file` is empty where no file has class names."""
    layout, is_listed = inventory.layout, len(inventory.classes) <= MOST_NAMES
    return _TEMPLATES.get_template("family.yaml.j2").render(
        name=name,
        root=root,
        sweep_file=shlex.quote(sweep_file),
        layout=layout,
        test_fraction=scan.TEST_FRACTION,
        exclude=inventory.exclude,
        names_file=names_file,
        class_names=class_names(inventory.classes) if is_listed else {},
        domains=[re.sub(r"[_.-]+", " ", name) for name in layout.shifts],
    )


def sweep_text(inventory: scan.Inventory, name: str, family_file: str, side: int | None) -> str:
    """Return the text of the sweep file; `side` is that of a typical image in pixels."""
    epochs, batch_size = budget(inventory.trained)
    return _TEMPLATES.get_template("sweep.yaml.j2").render(
        name=name,
        seeds=list(SEEDS),
        side=side,
        is_tiny=side is not None and side <= TINY,
        family_file=family_file,
        images=inventory.trained,
        epochs=epochs,
        batch_size=batch_size,
    )


def quoted(text: str) -> str:
    """Return a text as YAML, quoted if necessary."""
    if PLAIN.fullmatch(text) and not WORDS.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    trim_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
    autoescape=False,  # it is YAML, and `quoted` quotes it
)
_TEMPLATES.filters["quoted"] = quoted


def write_scaffold(
    images: Path, out: Path, *, name: str | None = None, force: bool = False
) -> dict[str, Any]:
    """Scan the folder `images`, and write `<name>.family.yaml` and `<name>.yaml` into `out`.

    Returns what `init --json` prints; only the owner of the images can solve its `problems`.

    Raises RequestError for a missing folder, for an unknown layout, or when a file exists already
    and `force` is not given.
    """
    images, out = images.expanduser().absolute(), out.expanduser().absolute()
    if not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise RequestError(f"{images} {what}; `init` needs a folder of images")
    try:
        inventory = scan.list_images(scan.recognise_layout(scan.scan_folder(images)))
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}") from None
    name = _checked_name(name, images)
    family, sweep = out / f"{name}.family.yaml", out / f"{name}.yaml"
    names_file = inventory.class_names_file
    texts = {
        family: family_text(
            inventory,
            name,
            _relative(inventory.layout.root, out),
            sweep.name,
            "" if names_file is None else _relative(names_file, out),
        ),
        sweep: sweep_text(inventory, name, family.name, scan.usual_side(inventory)),
    }
    _write(texts, force=force)
    shown = shlex.quote(os.path.relpath(sweep))
    splits = ["id/test", *(f"ood/{name}" for name in inventory.layout.shifts)]
    obstacles = find_obstacles(seeds=SEEDS, algorithms=TRAINED, splits=splits)
    return {
        "family": str(family),
        "sweep": str(sweep),
        "layout": inventory.layout.kind,
        "root": str(inventory.layout.root),
        "train": inventory.layout.below(inventory.layout.train),
        "counts": {
            split: {label: len(paths) for label, paths in by_class.items()}
            for split, by_class in inventory.splits.items()
        },
        "assumed": inventory.layout.assumed,
        "doubts": [*scan.find_doubts(inventory), *(obstacle.describe() for obstacle in obstacles)],
        "problems": inventory.problems,
        "next": [f"{program()} check {shown}", f"{program()} run {shown}"],
    }


def _checked_name(name: str | None, images: Path) -> str:
    """Return `name`, or a name made from the folder's. Raises RequestError for an invalid name."""
    taken = [family.name for family in FAMILIES.values() if not hasattr(family.open, "__self__")]
    if name is None:
        return family_name(images.name, taken)
    if not NAME.fullmatch(name) or name in taken:
        why = "is a family already" if name in taken else "is no name for a family"
        raise RequestError(
            f"--name {name} {why}: lower-case letters, digits and '_', beginning with a letter"
        )
    return name


def _relative(path: Path, out: Path) -> str:
    """Return a path below `out` relative to it, so that both can move together."""
    return str(path.relative_to(out)) if path.is_relative_to(out) else str(path)


def _write(texts: Mapping[Path, str], *, force: bool) -> None:
    existing = [path.name for path in texts if path.exists()]
    if existing and not force:
        folder = next(iter(texts)).parent
        raise RequestError(
            f"{' and '.join(existing)} {'are' if len(existing) > 1 else 'is'} in {folder} already; "
            "--force overwrites, --name and --out write elsewhere"
        )
    for path, text in texts.items():
        with atomic_file(path) as file:
            file.write_text(text, encoding="utf-8")
