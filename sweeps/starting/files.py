"""The text of a first family file and of a first sweep file, with comments to go on from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sweeps.starting.layout import TEST_FRACTION
from sweeps.starting.names import class_names
from sweeps.starting.survey import ShiftRules, Survey

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
            f"# `carft-sweep check {sweep_file}`; docs/own-data.md has every key.",
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
