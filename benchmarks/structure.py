"""How large is a package, who imports whom, and how far is it from here to there?

    python -m benchmarks.structure size [carft_core sweeps tracking]
    python -m benchmarks.structure walk image
    python -m benchmarks.structure walk kl_weight

`size` counts Python files and lines (all of them, blank ones too), says of how many files exactly
one other file of the package is the importer (halves of one concept, often), and finds circles:
groups of modules each of which reaches every other one by imports. Imports inside functions and
under TYPE_CHECKING count. `from package import name` counts as an import of `package.name` where
that is a module, else of `package`; that a package runs before its modules is no import.

`walk` runs the product in this process and watches it (sys.setprofile, and torch's own hooks). A
walk is an ordered list of distinct product functions, each at its first appearance; what is nested
in a function (a comprehension, a closure) is that function's. There are two.

`image`, "from an image file to `ood/mean/top1`": a short fine-tuning over a small folder of images,
in a process that knows the zero-shot model's predictions. From the first opening of a shift's file
to the end of `train()`, a function is on the walk if
* it is on the call stack when such a file is opened (stage `read`) or the image tower is called
  (stage `model`), from the outermost product function to the innermost, or
* it returns or yields what carries the image on: a picture or a tensor, also in a container or in
  a field of an object, before a first value is there (stage `data`), or the very value of a shift's
  top-1 or of `ood/mean/top1`, alone or in a mapping or a field (stage `value`).

`kl_weight`, "from the trial's fields to the loss": one step of CAR-FT with a weight that occurs
nowhere else. Until the first backward pass a function is on the walk if
* it returns the algorithm or the config that holds the weight (stage `config`), or
* it is on the call stack when the weight is read from the algorithm (stage `read`), meets a tensor
  (stage `tensor`), or when the loss goes backward (stage `loss`).

How to read it. The docs tell each walk with fewer functions (they leave out what only passes
things on); every function that they name must be in this list, and in this order, except where
stages interleave. The count is for comparing one tree with another.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

PRODUCT = "carft_sweep"
PACKAGES = tuple(f"{PRODUCT}.{name}" for name in ("carft_core", "sweeps", "tracking"))
WEIGHT = 0.7310585786
"""A KL weight that is no other number of a run."""
SHIFT_IMAGES = {"one": (5, 2), "two": (3, 4)}
"""Shifts by name with the images of each class, so that no two of the values are the same also of a
model that always says the same: their top-1 and its mean."""


def modules_of(package: str) -> dict[str, Path]:
    """The Python files of a package by module name, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"there is no package {package}")
    root = Path(next(iter(spec.submodule_search_locations)))
    modules = {}
    for file in sorted(root.rglob("*.py")):
        parts = [package, *file.relative_to(root).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def imports_of(module: str, file: Path, modules: Mapping[str, Path]) -> set[str]:
    """Which of `modules` a module imports, anywhere in its text."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") + ([""] if file.name == "__init__.py" else [])
                base = ".".join([*package[: -node.level], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                names.append(full if full in modules else base)
    return {name for name in names if name in modules and name != module}


def circles(imports: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """The groups of more than one module that reach each other, the largest first."""
    reached = {module: _reachable(module, imports) for module in imports}
    groups = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
        if module in reached[module]
    }
    return sorted((sorted(group) for group in groups), key=lambda group: (-len(group), group))


def _reachable(start: str, imports: Mapping[str, Iterable[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for module in imports[waiting.pop()]:
            if module not in reached:
                reached.add(module)
                waiting.append(module)
    return reached


def size(packages: Iterable[str]) -> str:
    """Files, lines, importers, and circles of each package."""
    lines = [
        f"{'package':22} {'files':>6} {'lines':>7} {'median':>7} {'one importer':>13}  "
        "longest file, most importers"
    ]
    tails = []
    for package in packages:
        modules = modules_of(package)
        counts = {name: len(file.read_text("utf-8").splitlines()) for name, file in modules.items()}
        longest = max(counts, key=lambda name: counts[name])
        imports = {name: imports_of(name, file, modules) for name, file in modules.items()}
        importers = Counter(name for imported in imports.values() for name in imported)
        alone = sum(count == 1 for count in importers.values())
        popular, most = importers.most_common(1)[0]
        lines.append(
            f"{package:22} {len(modules):6} {sum(counts.values()):7} "
            f"{median(counts.values()):7.0f} {alone:13}  {longest} ({counts[longest]}), "
            f"{popular} ({most})"
        )
        groups = circles(imports)
        tails.append(f"{package}: {len(groups)} circles")
        tails += [f"  of {len(group)}: {', '.join(group)}" for group in groups]
    return "\n".join([*lines, *tails]) + "\n"


class Walk:
    """Product functions in the order of their first appearance, with the stage in which it was."""

    def __init__(self) -> None:
        self.functions: dict[str, str] = {}

    def add(self, function: str, stage: str) -> None:
        """Once."""
        self.functions.setdefault(function, stage)

    def add_stack(self, stage: str) -> None:
        """Every product function on the call stack, the outermost first."""
        frame: FrameType | None = sys._getframe(1)
        names = []
        while frame is not None:
            names.append(function_of(frame))
            frame = frame.f_back
        for name in reversed(names):
            if name is not None:
                self.add(name, stage)

    def lines(self) -> list[str]:
        """A line a function."""
        return [
            f"{number:3} {stage:7} {name}"
            for number, (name, stage) in enumerate(self.functions.items(), 1)
        ]


def function_of(frame: FrameType) -> str | None:
    """`package.module:Class.function` of a product frame; None for foreign and generated code."""
    module = frame.f_globals.get("__name__", "")
    code = frame.f_code
    if not isinstance(module, str) or module.partition(".")[0] != PRODUCT:
        return None
    if code.co_filename.startswith("<") or code.co_name == "<module>":
        return None
    name = code.co_qualname.partition(".<locals>")[0]
    return None if name.startswith("<") else f"{module}:{name}"


@contextlib.contextmanager
def returns(watch: Callable[[str, Any], None]) -> Iterator[None]:
    """Tell `watch` what every product function returns or yields, in this thread."""

    def profile(frame: FrameType, event: str, value: Any) -> None:
        if event == "return" and value is not None:
            name = function_of(frame)
            if name is not None:
                watch(name, value)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def parts_of(value: Any, depth: int = 3) -> Iterator[Any]:
    """A value, and what lies in it: in containers and in fields of data classes."""
    yield value
    if depth == 0 or isinstance(value, type):
        return
    inside: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inside = list(value.values())[:200]
    elif isinstance(value, (tuple, list)):
        inside = value[:20]
    elif dataclasses.is_dataclass(value):
        inside = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    for part in inside:
        yield from parts_of(part, depth - 1)


class ImageWalk(Walk):
    """That of the images of shifts, from the first time that one is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.started = self.over = False
        self.thread = threading.get_ident()
        self.floats: dict[str, set[float]] = {}
        """What numbers each function returned; which of them matter is known at the end."""

    def opened(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook, which stays for the rest of the process."""
        if event != "open" or self.over or threading.get_ident() != self.thread:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ""
        if path.endswith(".png") and f"{os.sep}shifts{os.sep}" in path:
            self.started = True
            self.add_stack("read")

    def called(self, module: object, arguments: tuple[Any, ...]) -> None:
        """Before any torch module runs: the image tower's have a batch of images."""
        del module
        if self.started and any(getattr(item, "ndim", 0) == 4 for item in arguments):
            self.add_stack("model")

    def returned(self, function: str, value: Any) -> None:
        """What a product function returned or yielded."""
        from PIL import Image
        from torch import Tensor

        if not self.started:
            return
        for part in parts_of(value):
            if isinstance(part, (Tensor, Image.Image)):
                self.add(function, "data")
            elif isinstance(part, float):
                self.add(function, "value")
                self.floats.setdefault(function, set()).add(part)

    def keep(self, carried: set[float]) -> None:
        """Drop who returned other numbers, or tensors only once there were numbers."""
        valued = False
        for function, stage in list(self.functions.items()):
            carries = stage == "value" and bool(self.floats[function] & carried)
            valued = valued or carries
            if (stage == "value" and not carries) or (stage == "data" and valued):
                del self.functions[function]


def walk_image(folder: Path) -> Walk:
    """From the first opening of a shift's image to the result that holds `ood/mean/top1`."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    from carft_sweep.carft_core.bank import VARIABLE
    from carft_sweep.carft_core.config import trial_config
    from carft_sweep.carft_core.train import train

    os.environ[VARIABLE] = "0"  # no image is opened whose views an earlier run has kept
    _make_images(folder / "data")
    shared = {
        "data": {"family": "image_folder", "root": str(folder / "data"), "val_fraction": 0.5},
        "optim": {"steps": 2, "batch_size": 8, "lr": 1e-2},
        "device": "cpu",
        "workers": 0,
    }
    train(trial_config({"algorithm": "zero_shot", **shared}), 0, workdir=folder / "zero_shot")
    config = trial_config({"algorithm": "fine_tune", **shared})
    walk = ImageWalk()
    sys.addaudithook(walk.opened)
    hook = register_module_forward_pre_hook(walk.called)
    try:
        with returns(walk.returned):
            result = train(config, 0, workdir=folder / "run")
    finally:
        hook.remove()
        walk.over = True
    assert result is not None
    names = [*(f"ood/{shift}/top1" for shift in SHIFT_IMAGES), "ood/mean/top1"]
    carried = {result.metrics[name] for name in names}
    if len(carried) < len(names):
        raise SystemExit(f"{names} must differ, or their ways cannot be told apart: {carried}")
    walk.keep(carried)
    return walk


def _make_images(root: Path) -> None:
    """An image_folder tree with two shifts of noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    splits = {"train": (4, 4), "test": (3, 3)}
    splits |= {f"shifts/{name}": counts for name, counts in SHIFT_IMAGES.items()}
    for split, counts in splits.items():
        for label, count in zip(("cat", "dog"), counts, strict=True):
            for number in range(count):
                file = root / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file)


class _Arrived(Exception):
    """The walk is over."""


def walk_kl_weight(folder: Path) -> Walk:
    """From validation of the fields to the backward pass of the first step."""
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    from carft_sweep.carft_core.algorithms import ALGORITHMS
    from carft_sweep.carft_core.config import trial_config
    from carft_sweep.carft_core.train import train

    walk, car_ft = Walk(), ALGORITHMS["car_ft"]

    def returned(function: str, value: Any) -> None:
        if isinstance(value, dict):
            value = value.get("algorithm", value)
        algorithm = getattr(value, "algorithm", value)
        weight = (
            algorithm.get("kl_weight")
            if isinstance(algorithm, dict)
            else vars(algorithm).get("kl_weight")
            if isinstance(algorithm, car_ft)
            else None
        )
        if weight == WEIGHT:
            walk.add(function, "config")

    class Met(TorchFunctionMode):
        """Sees every operation on a tensor."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            if any(isinstance(it, float) and it == WEIGHT for it in args):
                walk.add_stack("tensor")
            if func is Tensor.backward:
                walk.add_stack("loss")
                raise _Arrived
            return func(*args, **(kwargs or {}))

    plain = car_ft.__getattribute__

    def read(self: Any, name: str) -> Any:
        if name == "kl_weight":
            walk.add_stack("read")
        return plain(self, name)

    car_ft.__getattribute__ = read  # type: ignore[method-assign]
    try:
        with contextlib.suppress(_Arrived), returns(returned), Met():
            config = trial_config(
                {
                    "algorithm": {"name": "car_ft", "kl_weight": WEIGHT},
                    "optim": {"steps": 1, "batch_size": 8},
                    "device": "cpu",
                }
            )
            train(config, 0, workdir=folder / "run")
    finally:
        del car_ft.__getattribute__
    return walk


WALKS: Mapping[str, Callable[[Path], Walk]] = {"image": walk_image, "kl_weight": walk_kl_weight}


def main() -> None:
    """Count or walk."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    sizing = commands.add_parser("size", help="files, lines, and circles of imports")
    sizing.add_argument("packages", nargs="*", default=PACKAGES)
    walking = commands.add_parser("walk", help="the product functions from here to there")
    walking.add_argument("name", choices=sorted(WALKS))
    options = parser.parse_args()
    if options.command == "size":
        sys.stdout.write(size(options.packages))
        return
    with tempfile.TemporaryDirectory(prefix="carft-walk-") as folder:
        walk = WALKS[options.name](Path(folder))
    modules = {name.partition(":")[0] for name in walk.functions}
    sys.stdout.write("\n".join(walk.lines()) + "\n")
    sys.stdout.write(f"{len(walk.functions)} functions in {len(modules)} modules\n")


if __name__ == "__main__":
    main()
