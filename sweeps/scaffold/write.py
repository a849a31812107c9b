"""The first family file and sweep file for a folder of images."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carft_core.data import FAMILIES
from carft_core.data.folders import plain_name
from carft_core.errors import RequestError
from carft_core.files import write_atomically
from carft_core.registry import NAME
from sweeps.scaffold.scan import (
    TEST_FRACTION,
    ShiftRules,
    Survey,
    doubts,
    look,
    recognise,
    sizes,
    survey,
)

NUMBERED = re.compile(r"\d+[ ._-]+(?=[A-Za-z])")


def family_name(folder: str, taken: Collection[str]) -> str:
    """Lower-case letters, digits and `_`, beginning with a letter; none that is taken."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"images_{name}".rstrip("_")
    return f"my_{name}" if name in taken else name


def class_names(folders: Sequence[str]) -> Mapping[str, str]:
    """Folder -> name: as is with spaces for underscores, without a number before it.

    Folders that would get one name keep their own.
    """
    short = {folder: plain_name(NUMBERED.sub("", folder, count=1)) for folder in folders}
    names = list(short.values())
    return {
        folder: name if name and names.count(name) == 1 else folder
        for folder, name in short.items()
    }


PLAIN = re.compile(r"[A-Za-z_][\w./-]*( [\w./-]+)*", re.ASCII)
WORDS = re.compile(r"true|false|null", re.IGNORECASE)
MOST_NAMES = 2000
TINY = 64
"""Pixels: what is no larger suits the built-in model, which sees 32."""
STEPS = 300
"""That a run has at least, where `EPOCHS` allows it."""
EPOCHS = (3, 20)


@dataclass(frozen=True)
class Budget:
    """How long a first run trains."""

    epochs: int
    batch_size: int


def budget(images: int) -> Budget:
    """Modest, for so many images to train on."""
    size = 512 if images >= 20_000 else 128 if images >= 2_000 else 32
    wanted = -(-STEPS * size // max(1, images))
    return Budget(min(max(wanted, EPOCHS[0]), EPOCHS[1]), size)


def family_text(found: Survey, name: str, root: str, sweep_file: str, names_file: str) -> str:
    """The family file; `root` and `names_file` (empty where there is none) as it is to say them."""
    return "\n".join(
        [
            "# Written by `carft-sweep init`, and yours to change. What does not fit is told by",
            f"# `carft-sweep check {shlex.quote(sweep_file)}`; docs/own-data.md has every key.",
            f"name: {name}",
            f"root: {quoted(root)} # of all folders; it may be relative to this file",
            "",
            *_in_distribution(found),
            "",
            *_shifts(found),
            "",
            *_class_names(found, names_file),
            "",
            "# What the classifier and CAR-FT's contexts say: a set by its name, or templates.",
            "prompts:",
            "  classes: openai",
            '  contexts: openai # e.g. ["a photo of a {}", "a sketch of a {}"]',
            "",
            *_domains(found),
        ]
    )


def _in_distribution(found: Survey) -> Iterator[str]:
    layout = found.layout
    yield "# In distribution. Several folders are joined by a list: [train, more_train]"
    yield f"train: {quoted(layout.train.below)}"
    if layout.val is not None:
        yield f"val: {quoted(layout.val.below)} # settings are chosen on it"
    else:
        yield "# val: FOLDER # left out, data.val_fraction of train is carved, a tenth"
    if layout.test is not None:
        yield f"test: {quoted(layout.test.below)}"
    else:
        yield f"test_fraction: {TEST_FRACTION} # of each class; instead of it: `test: FOLDER`"
    if found.exclude:
        yield f"exclude: {_list(found.exclude)} # class folders that are left out"


def _shifts(found: Survey) -> Iterator[str]:
    if not found.layout.shifts:
        yield "# Out of distribution: the same classes, seen otherwise. Without a shift there are"
        yield "# no ood/ metrics, and nothing tells what fine-tuning costs."
        yield "# shifts:"
        yield "#   sketch: FOLDER"
        return
    yield "# Out of distribution: a name, which becomes part of ood/NAME/top1, and a folder."
    yield "shifts:"
    for name, folder in found.layout.shifts.items():
        rules = found.rules[name]
        if rules == ShiftRules():
            yield f"  {quoted(name)}: {quoted(folder.below)}"
            continue
        yield f"  {quoted(name)}:"
        yield f"    folders: {quoted(folder.below)}"
        if rules.exclude:
            yield f"    exclude: {_list(rules.exclude)}"
        if rules.rename:
            yield f"    rename: {_mapping(rules.rename)} # folder: class"


def _class_names(found: Survey, names_file: str) -> Iterator[str]:
    if names_file:
        yield "# What prompts call each class folder."
        yield f"class_names_file: {quoted(names_file)}"
        return
    if len(found.classes) > MOST_NAMES:
        yield "# class_names: {FOLDER: name} # what prompts call a class; else its folder's name"
        return
    yield "# What prompts call each class folder. Words that a caption would have are best."
    yield "class_names:"
    for folder, name in class_names(found.classes).items():
        yield f"  {quoted(folder)}: {quoted(name)}"


def _domains(found: Survey) -> Iterator[str]:
    yield "# Words for the domains: a row whose contexts name one of them is marked in comparisons."
    words = [re.sub(r"[_.-]+", " ", name) for name in found.layout.shifts]
    yield f"domains: {_list(words)}"
    yield ""


def sweep_text(found: Survey, name: str, family_file: str, side: int | None) -> str:
    """The sweep file; `side` is that of a usual image in pixels."""
    return "\n".join(
        [
            "# Does holding on to the context help on these images, and how strongly to hold it?",
            "# Written by `carft-sweep init`; docs/sweep-file.md has every key.",
            f"name: {name}",
            "method: grid",
            "# What a setting is chosen by: a part of train, never the test or a shift.",
            "metric: {name: id/val/top1, goal: maximize}",
            "parameters:",
            "  algorithm.kl_weight: {values: [0.3, 1.0, 3.0]} # 0 is fine-tuning",
            "seeds: [0, 1, 2] # five or more for a verdict that counts: --set seeds=5",
            "baselines: [zero_shot, fine_tune] # same data, budget and seeds",
            "trial:",
            *_model(side),
            f"  data: {{family: {quoted(family_file)}}}",
            "  algorithm: {name: car_ft}",
            *_optim(found, side),
            "  # Each run is also measured between its zero-shot and its tuned weights.",
            "  merges: [{name: wise_ft, alphas: [0.25, 0.5, 0.75]}]",
            "  # workers: 4 # processes that decode images; helps where a GPU waits for them",
            "",
        ]
    )


def _model(side: int | None) -> Iterator[str]:
    if side is not None and side <= TINY:
        yield f"  # The images are tiny (about {side} pixels), and so is the built-in model."
        yield "  # For larger ones: {name: ViT-B-32, pretrained: openai}"
        yield "  model: {name: builtin}"
        return
    yield "  # Its weights are downloaded once. Without a network `pretrained` may be a file, and"
    yield "  # `name` a folder with open_clip_config.json: docs/models-and-prompts.md."
    yield "  model: {name: ViT-B-32, pretrained: openai}"


def _optim(found: Survey, side: int | None) -> Iterator[str]:
    chosen = budget(found.trained)
    rate = "5e-4" if side is not None and side <= TINY else "1e-5"
    yield f"  # Modest for {found.trained} images. If accuracy still rises at the end: more epochs."
    yield "  # If memory is short: micro_batch: 16, which computes the same in parts."
    yield (f"  optim: {{lr: {rate}, epochs: {chosen.epochs}, batch_size: {chosen.batch_size}}}")


def quoted(text: str) -> str:
    """A text as YAML, in quotes where it needs them."""
    if PLAIN.fullmatch(text) and not WORDS.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _list(items: Sequence[str]) -> str:
    return f"[{', '.join(map(quoted, items))}]"


def _mapping(pairs: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{quoted(key)}: {quoted(value)}' for key, value in pairs.items())}}}"


@dataclass(frozen=True)
class Started:
    """What was found, and what was written."""

    family: Path
    sweep: Path
    layout: str
    root: Path
    counts: Mapping[str, Mapping[str, int]]
    """Split -> class -> images; `train` with what is carved from it."""
    assumed: tuple[str, ...]
    doubts: tuple[str, ...]
    mend: tuple[str, ...]
    """What only the owner of the images can change, and `check` refuses."""

    @property
    def next(self) -> tuple[str, str]:
        """The commands that go on from here."""
        shown = shlex.quote(os.path.relpath(self.sweep))
        return f"carft-sweep check {shown}", f"carft-sweep run {shown}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        plain = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(self).items()
        }
        return {**plain, "next": list(self.next)}


def start(images: Path, out: Path, *, name: str | None = None, force: bool = False) -> Started:
    """Look at the folder `images`, and write `<name>.family.yaml` and `<name>.yaml` into `out`.

    Raises RequestError for a folder that is not there, whose layout nobody knows, or when a file
    is there already and `force` is not given.
    """
    images, out = images.expanduser().absolute(), out.expanduser().absolute()
    if not images.is_dir():
        what = "is not a folder" if images.exists() else "does not exist"
        raise RequestError(f"{images} {what}; `init` wants a folder of images")
    try:
        top = look(images)
        found = survey(recognise(top, images))
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}") from None
    named = _name(name, images)
    family, sweep = out / f"{named}.family.yaml", out / f"{named}.yaml"
    seen = sizes(found)
    file = found.class_names_file
    texts = {
        family: family_text(
            found,
            named,
            _shown(found.layout.root, out),
            sweep.name,
            "" if file is None else _shown(file, out),
        ),
        sweep: sweep_text(found, named, family.name, seen.median),
    }
    _write(texts, force=force)
    return Started(
        family=family,
        sweep=sweep,
        layout=found.layout.kind,
        root=found.layout.root,
        counts={
            split: {one: len(files) for one, files in listing.items()}
            for split, listing in found.splits.items()
        },
        assumed=tuple(found.layout.assumed),
        doubts=tuple(doubts(found, top, seen)),
        mend=tuple(found.mend),
    )


def _name(given: str | None, images: Path) -> str:
    """Raises RequestError for a name that no family can have."""
    taken = [family.name for family in FAMILIES.values() if not hasattr(family.open, "__self__")]
    if given is None:
        return family_name(images.name, taken)
    if not NAME.fullmatch(given) or given in taken:
        why = "is a family already" if given in taken else "is no name for a family"
        raise RequestError(
            f"--name {given} {why}: lower-case letters, digits and '_', beginning with a letter"
        )
    return given


def _shown(path: Path, out: Path) -> str:
    """Relative when it lies below the files that are written, so that both can move together."""
    return str(path.relative_to(out)) if path.is_relative_to(out) else str(path)


def _write(texts: Mapping[Path, str], *, force: bool) -> None:
    there = [path.name for path in texts if path.exists()]
    if there and not force:
        folder = next(iter(texts)).parent
        raise RequestError(
            f"{' and '.join(there)} {'are' if len(there) > 1 else 'is'} in {folder} already; "
            "--force writes anew, --name and --out write elsewhere"
        )
    for path, text in texts.items():
        write_atomically(path, functools.partial(_fill, text=text))


def _fill(file: Path, *, text: str) -> None:
    file.write_text(text, encoding="utf-8")
